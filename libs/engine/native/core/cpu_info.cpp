#include "core/cpu_info.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>
#include <vector>

#include "core/error.h"

#ifdef ENGINE_X86
#include <cpuid.h>
#endif

namespace engine {
namespace {

constexpr std::array<std::string_view, 5> kIsaNames = {"scalar", "avx2", "avx512", "avx512_bf16", "amx"};

#ifdef ENGINE_X86
struct CpuidRegisters {
  std::uint32_t a = 0, b = 0, c = 0, d = 0;
};

CpuidRegisters cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  CpuidRegisters r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);  // leaves zeros when the leaf is beyond the CPU's last
  return r;
}

std::uint64_t xcr0() {
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

bool bit(std::uint32_t word, int index) { return ((word >> index) & 1u) != 0; }

bool is_intel() {
  const CpuidRegisters vendor = cpuid(0, 0);
  return vendor.b == 0x756e6547u && vendor.d == 0x49656e69u && vendor.c == 0x6c65746eu;  // "Genu" "ineI" "ntel"
}

// Tile registers are 8 KB of state per thread, so Linux (5.16 and later) wants to be asked before a process touches them.
bool request_tile_permission() {
  constexpr long kArchRequestXcompPermission = 0x1023;
  constexpr long kTileData = 18;
  return ::syscall(SYS_arch_prctl, kArchRequestXcompPermission, kTileData) == 0;
}

Isa detect() {
  const CpuidRegisters leaf1 = cpuid(1, 0), leaf7 = cpuid(7, 0), leaf7_1 = cpuid(7, 1);
  const bool osxsave = bit(leaf1.c, 27);
  if (!osxsave) return Isa::scalar;
  const std::uint64_t enabled = xcr0();
  const bool ymm_state = (enabled & 0x6) == 0x6;
  const bool zmm_state = (enabled & 0xe6) == 0xe6;
  const bool tile_state = (enabled & 0x60000) == 0x60000;
  const bool fma = bit(leaf1.c, 12), f16c = bit(leaf1.c, 29), avx2 = bit(leaf7.b, 5);
  if (!(ymm_state && fma && f16c && avx2)) return Isa::scalar;
  const bool f = bit(leaf7.b, 16), dq = bit(leaf7.b, 17), bw = bit(leaf7.b, 30), vl = bit(leaf7.b, 31);
  if (!(zmm_state && f && dq && bw && vl)) return Isa::avx2;
  if (!bit(leaf7_1.a, 5)) return Isa::avx512;
  const bool amx_bf16 = bit(leaf7.d, 22), amx_tile = bit(leaf7.d, 24), vbmi = bit(leaf7.c, 1), vbmi2 = bit(leaf7.c, 6);
  if (tile_state && amx_bf16 && amx_tile && vbmi && vbmi2 && request_tile_permission()) return Isa::amx;
  // Intel's cores start a bf16 dot product every third cycle (Sapphire Rapids, measured): two fp32 multiply-adds a cycle are faster.
  return is_intel() ? Isa::avx512 : Isa::avx512_bf16;
}
#else
Isa detect() { return Isa::scalar; }
#endif

std::optional<std::string> read_line(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::string line;
  if (!std::getline(in, line)) return std::nullopt;
  return line;
}

std::optional<double> parse_number(const std::string& word) {
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);
  if (end == word.c_str()) return std::nullopt;
  return value;
}

// Folders of this process in one hierarchy, from its own cgroup up to the mount point. In a container the path in
// /proc/self/cgroup may lie outside what is mounted; then only the mount point itself is there to be read.
std::vector<std::filesystem::path> cgroup_folders(const std::filesystem::path& mount, const std::string& own) {
  std::vector<std::filesystem::path> folders;
  std::filesystem::path relative = std::filesystem::path(own).relative_path();
  while (!relative.empty()) {
    folders.push_back(mount / relative);
    relative = relative.parent_path();
  }
  folders.push_back(mount);
  return folders;
}

struct OwnCgroup {
  std::string unified, cpu, memory;  // paths in the v2 hierarchy and in v1's cpu and memory hierarchies
};

OwnCgroup own_cgroup(const std::filesystem::path& root) {
  OwnCgroup own;
  std::ifstream in(root / "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {  // hierarchy-id:controller,list:path
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string path = line.substr(second + 1);
    std::istringstream controllers(line.substr(first + 1, second - first - 1));
    if (second == first + 1) own.unified = path;
    for (std::string name; std::getline(controllers, name, ',');) {
      if (name == "cpu") own.cpu = path;
      if (name == "memory") own.memory = path;
    }
  }
  return own;
}

}  // namespace

std::string_view isa_name(Isa isa) noexcept { return kIsaNames[static_cast<std::size_t>(isa)]; }

Isa detected_isa() {
  static const Isa isa = detect();
  return isa;
}

Isa usable_isa() {
  const char* word = std::getenv("MEDMESH_ENGINE_ISA");
  if (word == nullptr || *word == '\0') return detected_isa();
  for (std::size_t i = 0; i < kIsaNames.size(); ++i)
    if (kIsaNames[i] == word) return std::min(detected_isa(), static_cast<Isa>(i));
  fail(Code::invalid, "MEDMESH_ENGINE_ISA is \"", word, "\"; use scalar, avx2, avx512, avx512_bf16 or amx, or leave it unset");
}

std::string cpu_name() {
#ifdef ENGINE_X86
  if (cpuid(0x80000000u, 0).a >= 0x80000004u) {
    std::array<char, 49> brand{};
    for (std::uint32_t i = 0; i < 3; ++i) {
      const CpuidRegisters r = cpuid(0x80000002u + i, 0);
      std::memcpy(brand.data() + 16 * i, &r, 16);
    }
    const std::string name(brand.data());
    const auto begin = name.find_first_not_of(' ');
    if (begin != std::string::npos) return name.substr(begin, name.find_last_not_of(' ') - begin + 1);
  }
#endif
  return "unknown CPU";
}

double cgroup_cpu_quota(const std::filesystem::path& root) {
  const OwnCgroup own = own_cgroup(root);
  double quota = 0;
  const auto lower_to = [&quota](double cpus) {
    if (cpus > 0 && (quota == 0 || cpus < quota)) quota = cpus;
  };
  for (const auto& folder : cgroup_folders(root / "sys/fs/cgroup", own.unified)) {
    std::istringstream words(read_line(folder / "cpu.max").value_or(""));  // "max 100000" or "150000 100000"
    double limit = 0, period = 0;
    if (words >> limit >> period && period > 0) lower_to(limit / period);
  }
  for (const char* controller : {"sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"})
    for (const auto& folder : cgroup_folders(root / controller, own.cpu)) {
      const auto limit = parse_number(read_line(folder / "cpu.cfs_quota_us").value_or(""));  // -1: none
      const auto period = parse_number(read_line(folder / "cpu.cfs_period_us").value_or(""));
      if (limit && period && *limit > 0 && *period > 0) lower_to(*limit / *period);
    }
  return quota;
}

std::int64_t cgroup_memory_limit(const std::filesystem::path& root) {
  constexpr double kNoLimitV1 = 0x1p62;  // v1 writes a number near 2^63 for "unlimited"
  const OwnCgroup own = own_cgroup(root);
  std::int64_t lowest = 0;
  const auto lower_to = [&lowest](std::optional<double> bytes) {
    if (!bytes || *bytes <= 0 || *bytes >= kNoLimitV1) return;
    const auto limit = static_cast<std::int64_t>(*bytes);
    if (lowest == 0 || limit < lowest) lowest = limit;
  };
  for (const auto& folder : cgroup_folders(root / "sys/fs/cgroup", own.unified)) {
    const std::string word = read_line(folder / "memory.max").value_or("max");
    if (word != "max") lower_to(parse_number(word));
  }
  for (const auto& folder : cgroup_folders(root / "sys/fs/cgroup/memory", own.memory))
    lower_to(parse_number(read_line(folder / "memory.limit_in_bytes").value_or("")));
  return lowest;
}

int available_threads() {
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t mask;
  if (::sched_getaffinity(0, sizeof mask, &mask) == 0) cpus = CPU_COUNT(&mask);
  const double quota = cgroup_cpu_quota("/");
  if (quota > 0) cpus = std::min(cpus, static_cast<int>(std::ceil(quota)));
  return std::max(cpus, 1);
}

std::vector<int> cpus_to_stay_on(int threads) {
  const char* word = std::getenv("MEDMESH_ENGINE_PIN");
  const std::string_view choice = word == nullptr ? "" : word;
  require(choice.empty() || choice == "0" || choice == "1", "MEDMESH_ENGINE_PIN is \"", choice, "\"; use 0 or 1, or leave it unset");
  cpu_set_t mask;
  if (choice == "0" || ::sched_getaffinity(0, sizeof mask, &mask) != 0) return {};
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
  const auto count = static_cast<int>(cpus.size());
  const double quota = cgroup_cpu_quota("/");
  if (threads > count || (quota > 0 && quota < threads)) return {};
  if (choice != "1" && (threads != count || count >= ::sysconf(_SC_NPROCESSORS_ONLN))) return {};
  cpus.resize(static_cast<std::size_t>(threads));
  return cpus;
}

std::int64_t available_memory_bytes() {
  const std::int64_t physical = std::int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE);
  const std::int64_t limit = cgroup_memory_limit("/");
  return limit > 0 ? std::min(physical, limit) : physical;
}

}  // namespace engine
