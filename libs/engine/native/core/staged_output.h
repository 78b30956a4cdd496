// staged_output.h: files and folders that appear complete or not at all.
//   Work happens under a temporary name beside the target; commit() syncs it and renames. Without commit() the destructor removes everything.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

namespace engine {

enum class IfExists { refuse, replace };

// Writes all bytes to a new file under `path` and syncs it. Throws io.
void write_file(const std::filesystem::path& path, std::string_view bytes);

class StagedDirectory {
 public:
  // Throws invalid at once when `target` is taken and may not be replaced (an empty folder is never in the way), io when it cannot be made.
  StagedDirectory(std::filesystem::path target, IfExists existing);
  ~StagedDirectory();
  StagedDirectory(const StagedDirectory&) = delete;
  StagedDirectory& operator=(const StagedDirectory&) = delete;

  const std::filesystem::path& path() const noexcept { return staging_; }  // where to write
  std::filesystem::path operator/(const std::filesystem::path& name) const { return staging_ / name; }
  void commit();

 private:
  std::filesystem::path target_, staging_;
  std::vector<std::filesystem::path> made_parents_;
  IfExists existing_;
  bool committed_ = false;
};

class StagedFile {
 public:
  explicit StagedFile(std::filesystem::path target);  // replaces an existing file at commit()
  ~StagedFile();
  StagedFile(const StagedFile&) = delete;
  StagedFile& operator=(const StagedFile&) = delete;

  const std::filesystem::path& path() const noexcept { return staging_; }
  void commit();

 private:
  std::filesystem::path target_, staging_;
  bool committed_ = false;
};

}  // namespace engine
