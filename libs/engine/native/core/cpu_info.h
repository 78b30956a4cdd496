// cpu_info.h: what this process may use of the machine: instruction sets, threads and memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace engine {

// Ordered: a CPU that has one has all before it.
//   avx2         AVX2, FMA, F16C
//   avx512       F, BW, DQ, VL
//   avx512_bf16  the bf16 dot product
//   amx          bf16 tiles, with the kernel's permission to use them, and VBMI and VBMI2
enum class Isa : std::uint8_t { scalar, avx2, avx512, avx512_bf16, amx };

std::string_view isa_name(Isa isa) noexcept;

// The best set that both CPU and operating system offer (cpuid and XCR0); avx512_bf16 only where it is the faster choice. The first call asks Linux for the AMX tile state.
Isa detected_isa();

// detected_isa(), lowered to MEDMESH_ENGINE_ISA (scalar, avx2, avx512, avx512_bf16, amx) when that is set. Throws invalid for another word.
Isa usable_isa();

// "Intel(R) Xeon(R) …" from the CPU itself; "unknown CPU" where it does not say.
std::string cpu_name();

// Threads worth starting: the CPUs in this process's affinity mask, lowered to its cgroup's CPU quota (v2 or v1, every ancestor
// counts), rounded up. At least 1.
int available_threads();

// The CPUs that a pool's threads are to stay on, one each, worker by worker; empty: wherever the system puts them. A thread that stays keeps its caches,
// but two that are made to share a CPU wait for each other, so this is for a process with CPUs of its own: its affinity mask was narrowed (a cpuset,
// taskset) to exactly `threads` CPUs, and no quota is below that. MEDMESH_ENGINE_PIN=0 says never; 1 also with a mask of all CPUs or more than `threads`
// of them. Throws invalid for another word.
std::vector<int> cpus_to_stay_on(int threads);

// Physical memory, lowered to the cgroup's limit. Bytes.
std::int64_t available_memory_bytes();

// The two readers behind the functions above, on a given root ("/" in production) so that tests can lay out a cgroup tree.
// 0 means no limit.
double cgroup_cpu_quota(const std::filesystem::path& root);
std::int64_t cgroup_memory_limit(const std::filesystem::path& root);

}  // namespace engine
