// bench.h: timing, and the floors a time is compared with: this machine's multiply-add rate and its memory bandwidth, both measured.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/exec.h"

namespace engine::bench {

struct Floors {
  double flops;      // fp32 multiply-adds x 2 per second, all threads
  double bandwidth;  // bytes read per second, all threads, from memory
};

// Measured once per process, about half a second.
const Floors& floors(ThreadPool& pool);

// Best of as many runs as fit in about `seconds` (at least three), in seconds. The first run is not counted.
double best_time(const std::function<void()>& body, double seconds = 0.3);

// A table with the columns: what, time, GFLOP/s and share of peak, GB/s and share of bandwidth. flops or bytes may be 0: not printed.
void print_header(const Exec& ex, const char* title);
void print_row(const Exec& ex, const std::string& what, double seconds, double flops, double bytes);

// Values between -1 and 1.
std::vector<float> values(std::int64_t n, std::uint64_t stream = 1);

// Threads: MEDMESH_ENGINE_THREADS, else all that this process may use.
int thread_count();

}  // namespace engine::bench
