#include "core/staged_output.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "core/error.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

// A name of our own beside the target, so that the rename stays on one file system.
fs::path staging_name(const fs::path& target) {
  static std::atomic<unsigned> counter{0};
  return target.parent_path() / text(".", target.filename().string(), ".staging-", ::getpid(), "-", counter.fetch_add(1));
}

fs::path absolute_target(const fs::path& target) {
  require(!target.empty(), "the output path is empty");
  fs::path full = fs::absolute(target).lexically_normal();
  if (!full.has_filename()) full = full.parent_path();  // "a/b/" names b
  require(full.has_filename(), "the output path ", target.string(), " names no file or folder");
  return full;
}

void sync_path(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(Code::io, "cannot open ", path.string(), " to sync it: ", std::strerror(errno));
  const int result = ::fsync(fd);
  const int reason = errno;
  ::close(fd);
  // Some file systems cannot sync a directory and say EINVAL; the rename is still atomic there.
  if (result != 0 && reason != EINVAL) fail(Code::io, "cannot sync ", path.string(), ": ", std::strerror(reason));
}

bool is_taken(const fs::path& target) {
  std::error_code error;
  const auto status = fs::symlink_status(target, error);
  if (status.type() == fs::file_type::not_found) return false;
  return !(status.type() == fs::file_type::directory && fs::is_empty(target, error) && !error);
}

}  // namespace

void write_file(const fs::path& path, std::string_view bytes) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) fail(Code::io, "cannot create ", path.string(), ": ", std::strerror(errno));
  std::size_t done = 0;
  while (done < bytes.size()) {
    const auto written = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int reason = errno;
      ::close(fd);
      fail(Code::io, "cannot write ", path.string(), ": ", std::strerror(reason));
    }
    done += static_cast<std::size_t>(written);
  }
  const bool synced = ::fsync(fd) == 0;
  const int reason = errno;
  const bool closed = ::close(fd) == 0;
  if (!synced || !closed) fail(Code::io, "cannot finish ", path.string(), ": ", std::strerror(synced ? errno : reason));
}

StagedDirectory::StagedDirectory(fs::path target, IfExists existing) : target_(absolute_target(target)), existing_(existing) {
  if (existing == IfExists::refuse)
    require(!is_taken(target_), target_.string(), " exists and is not an empty folder; remove it or choose another output folder");
  staging_ = staging_name(target_);
  for (fs::path parent = target_.parent_path(); !fs::exists(parent); parent = parent.parent_path()) made_parents_.push_back(parent);
  std::error_code error;
  fs::create_directories(staging_, error);
  if (error) {
    const std::string reason = error.message();
    for (const fs::path& parent : made_parents_) fs::remove(parent, error);
    fail(Code::io, "cannot create a folder beside ", target_.string(), ": ", reason);
  }
}

StagedDirectory::~StagedDirectory() {
  if (committed_) return;
  std::error_code ignored;
  fs::remove_all(staging_, ignored);
  for (const fs::path& parent : made_parents_) fs::remove(parent, ignored);  // innermost first; stays if someone else uses it
}

void StagedDirectory::commit() {
  sync_path(staging_);
  if (existing_ == IfExists::replace && is_taken(target_)) {
    // The two trade places in one step, so the target exists at every moment; then the old one goes.
    if (::renameat2(AT_FDCWD, staging_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0)
      fail(Code::io, "cannot replace ", target_.string(), ": ", std::strerror(errno));
    committed_ = true;
    std::error_code ignored;
    fs::remove_all(staging_, ignored);
  } else {
    if (::rename(staging_.c_str(), target_.c_str()) != 0)
      fail(Code::io, "cannot rename the finished folder to ", target_.string(), ": ", std::strerror(errno));
    committed_ = true;
  }
  sync_path(target_.parent_path());
}

StagedFile::StagedFile(fs::path target) : target_(absolute_target(target)), staging_(staging_name(target_)) {}

StagedFile::~StagedFile() {
  if (!committed_) ::unlink(staging_.c_str());
}

void StagedFile::commit() {
  sync_path(staging_);
  if (::rename(staging_.c_str(), target_.c_str()) != 0)
    fail(Code::io, "cannot rename the finished file to ", target_.string(), ": ", std::strerror(errno));
  committed_ = true;
  sync_path(target_.parent_path());
}

}  // namespace engine
