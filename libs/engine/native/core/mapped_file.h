// mapped_file.h: a whole file, read-only, mapped into memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

namespace engine {

// Owns the mapping; views into it die with it. The file must not be truncated while mapped (the bytes would be gone):
// stores publish files by rename and never rewrite them.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);  // throws io: missing, not a regular file, not readable
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::uint8_t> bytes() const noexcept { return {data_, size_}; }
  const std::filesystem::path& path() const noexcept { return path_; }

  // Lets the kernel drop pages [offset, offset + length) from this process after a streaming pass; the data stays readable.
  void release(std::size_t offset, std::size_t length) const noexcept;

 private:
  std::filesystem::path path_;
  const std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace engine
