// gguf_file.h: reads a GGUF file (version 3, little-endian). Strict as the safetensors reader is: every bound is checked before use, and a file that
//   contradicts the format is Code::corrupt. Versions 1 and 2, big-endian files and tensor types this project does not write are Code::unsupported.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/mapped_file.h"
#include "formats/gguf.h"

namespace engine {

struct GgufTensor {
  std::string name;
  GgmlType type = GgmlType::f32;
  std::vector<std::int64_t> shape;     // outermost first
  std::int64_t values = 0, bytes = 0;
  const std::uint8_t* data = nullptr;  // borrowed from the file
};

struct GgufContents {
  std::map<std::string, GgufValue, std::less<>> metadata;
  std::vector<GgufTensor> tensors;  // in the order of their data
};

// Parses a whole file held in memory; the tensors borrow from `file`. `what` names it in messages.
GgufContents parse_gguf(std::span<const std::uint8_t> file, std::string_view what);

// A mapped file.
class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& path);  // throws io, corrupt, unsupported

  const GgufContents& contents() const noexcept { return contents_; }
  const GgufTensor* find(std::string_view name) const;  // nullptr when absent
  const GgufTensor& at(std::string_view name) const;    // throws corrupt when absent
  // The entry, when it is there and of this type; otherwise nullptr.
  template <class T>
  const T* get(std::string_view key) const {
    const auto found = contents_.metadata.find(key);
    return found == contents_.metadata.end() ? nullptr : std::get_if<T>(&found->second);
  }
  std::int64_t file_bytes() const noexcept { return static_cast<std::int64_t>(file_.bytes().size()); }
  // Drops the tensor's pages from this process after a streaming pass.
  void release(const GgufTensor& tensor) const noexcept;

 private:
  MappedFile file_;
  GgufContents contents_;
  std::map<std::string_view, const GgufTensor*, std::less<>> by_name_;
};

}  // namespace engine
