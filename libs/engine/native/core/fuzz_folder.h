// fuzz_folder.h: for fuzz targets of readers that open files by name: a folder of this process, in memory where the system has such a place.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

namespace engine::fuzz {

class Folder {
 public:
  Folder() {
    const char* base = std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : "/tmp";
    std::string name = std::string(base) + "/engine-fuzz-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::filesystem::path& path() const noexcept { return path_; }
  // Replaces a file: a fresh inode, so that a mapping of the old one is not truncated.
  void write(const char* name, std::string_view bytes) const {
    const std::filesystem::path file = path_ / name;
    ::unlink(file.c_str());
    const int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ::write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()) || ::close(fd) != 0) std::abort();
  }

 private:
  std::filesystem::path path_;
};

// The input as two texts: a u16 length of the first, the first, the second.
struct TwoParts {
  std::string_view first, second;
  explicit TwoParts(std::string_view input) {
    if (input.size() < 2) return;
    const std::size_t wanted = static_cast<unsigned char>(input[0]) | static_cast<std::size_t>(static_cast<unsigned char>(input[1])) << 8;
    first = input.substr(2, wanted);
    second = input.substr(2 + first.size());
  }
};

}  // namespace engine::fuzz
