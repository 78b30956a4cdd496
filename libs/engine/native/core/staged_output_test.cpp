#include "core/staged_output.h"

#include <fstream>

#include "core/test.h"

namespace engine {
namespace fs = std::filesystem;
namespace {

std::string contents(const fs::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}
int entries(const fs::path& dir) { return static_cast<int>(std::distance(fs::directory_iterator(dir), {})); }

}  // namespace

TEST("a committed folder appears under its name and nothing else remains") {
  const test::TempDir temp;
  {
    StagedDirectory out(temp / "a/b", IfExists::refuse);
    write_file(out / "x", "one");
    CHECK(!fs::exists(temp / "a/b"));
    out.commit();
  }
  CHECK_EQ(contents(temp / "a/b/x"), std::string("one"));
  CHECK_EQ(entries(temp / "a"), 1);
}

TEST("an abandoned folder leaves nothing, the parents it made included") {
  const test::TempDir temp;
  { StagedDirectory(temp / "a/b/c", IfExists::refuse); }
  CHECK_EQ(entries(temp.path()), 0);
}

TEST("a taken target is refused before any work, an empty folder is not in the way") {
  const test::TempDir temp;
  fs::create_directories(temp / "full/inside");
  fs::create_directories(temp / "empty");
  CHECK_THROWS(invalid, StagedDirectory(temp / "full", IfExists::refuse));
  StagedDirectory out(temp / "empty", IfExists::refuse);
  write_file(out / "x", "one");
  out.commit();
  CHECK(fs::exists(temp / "empty/x"));
}

TEST("replacing a folder swaps old for new and removes the old") {
  const test::TempDir temp;
  fs::create_directories(temp / "t/old");
  StagedDirectory out(temp / "t", IfExists::replace);
  write_file(out / "new", "n");
  out.commit();
  CHECK(fs::exists(temp / "t/new"));
  CHECK(!fs::exists(temp / "t/old"));
  CHECK_EQ(entries(temp.path()), 1);
}

TEST("a staged file replaces the old one only at commit") {
  const test::TempDir temp;
  write_file(temp / "f", "old");
  {
    const StagedFile abandoned(temp / "f");
    write_file(abandoned.path(), "half");
  }
  CHECK_EQ(contents(temp / "f"), std::string("old"));
  StagedFile out(temp / "f");
  write_file(out.path(), "new");
  out.commit();
  CHECK_EQ(contents(temp / "f"), std::string("new"));
  CHECK_EQ(entries(temp.path()), 1);
}

}  // namespace engine
