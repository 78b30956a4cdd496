// train_bench.h: QLoRA training on GPUs over the workloads of the usual comparisons, on random weights that never touch a file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace engine::bench {

struct TrainBench {
  std::string shape = "7b";            // of bench_model.h
  std::string work = "tutorial";       // see lengths_of
  std::int64_t memory_budget = 0;      // bytes of the whole process on each device, its context included; 0: what is free
  int data_parallel = 1;               // devices; each gets the whole workload
  std::int64_t steps = 12, warm = 4;   // timed, and run before them
};

// Rows of one micro-batch. A step's micro-batches are taken in turn.
using Rows = std::vector<std::int64_t>;
// tutorial: two rows of 256 to 1024 tokens, one after the other (Python's random.Random(3407).randint, drawn in turn); fixed: the same with 640;
// batch: 8 rows of 1024 at once; long: one row of 16384. [steps][micro-batches]. Throws invalid for another name.
std::vector<std::vector<Rows>> lengths_of(const std::string& work, std::int64_t steps);

// Bytes of "7GiB", "512MiB" or "auto" (0). Throws invalid.
std::int64_t parse_memory(const std::string& word);

// Prints the plan, then one JSON line. Throws unsupported when there are too few GPUs, oom when the budget is too small.
void run_train_bench(const TrainBench& bench);

}  // namespace engine::bench
