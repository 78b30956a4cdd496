#include "core/cpu_info.h"

#include <cstdlib>
#include <fstream>

#include "core/test.h"

namespace engine {
namespace {

void write(const std::filesystem::path& path, const std::string& line) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << line << '\n';
}

// Sets an environment variable for the length of a scope.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    const char* before = std::getenv(name);
    if (before != nullptr) before_ = before;
    ::setenv(name, value, 1);
  }
  ~Environment() {
    if (before_)
      ::setenv(name_, before_->c_str(), 1);
    else
      ::unsetenv(name_);
  }

 private:
  const char* name_;
  std::optional<std::string> before_;
};

}  // namespace

TEST("MEDMESH_ENGINE_ISA lowers the instruction set and never raises it") {
  {
    const Environment scalar("MEDMESH_ENGINE_ISA", "scalar");
    CHECK(usable_isa() == Isa::scalar);
  }
  {
    const Environment best("MEDMESH_ENGINE_ISA", "amx");
    CHECK(usable_isa() == detected_isa());
  }
  const Environment unknown("MEDMESH_ENGINE_ISA", "sse2");
  CHECK_THROWS(invalid, usable_isa());
}

TEST("a cgroup v2 quota of the process or of any ancestor counts, the lowest one") {
  test::TempDir root;
  write(root / "proc/self/cgroup", "0::/pod/box");
  write(root / "sys/fs/cgroup/pod/box/cpu.max", "max 100000");
  write(root / "sys/fs/cgroup/pod/cpu.max", "150000 100000");
  write(root / "sys/fs/cgroup/cpu.max", "400000 100000");
  CHECK_EQ(cgroup_cpu_quota(root.path()), 1.5);
  write(root / "sys/fs/cgroup/pod/memory.max", "1048576");
  write(root / "sys/fs/cgroup/memory.max", "max");
  CHECK_EQ(cgroup_memory_limit(root.path()), 1048576);
}

TEST("a cgroup v1 quota counts, and its -1 and huge memory numbers mean no limit") {
  test::TempDir root;
  write(root / "proc/self/cgroup", "4:cpu,cpuacct:/box\n3:memory:/box");
  write(root / "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "200000");
  write(root / "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000");
  write(root / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1");
  write(root / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
  write(root / "sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9223372036854771712");
  CHECK_EQ(cgroup_cpu_quota(root.path()), 2.0);
  CHECK_EQ(cgroup_memory_limit(root.path()), 0);
}

TEST("no cgroup files mean no limit, and broken ones are ignored") {
  test::TempDir root;
  CHECK_EQ(cgroup_cpu_quota(root.path()), 0.0);
  write(root / "proc/self/cgroup", "nonsense");
  write(root / "sys/fs/cgroup/cpu.max", "plenty");
  CHECK_EQ(cgroup_cpu_quota(root.path()), 0.0);
  CHECK_EQ(cgroup_memory_limit(root.path()), 0);
}

TEST("this machine has at least one thread, some memory and a name") {
  CHECK(available_threads() >= 1);
  CHECK(available_memory_bytes() > (1 << 20));
  CHECK(!cpu_name().empty());
}

}  // namespace engine
