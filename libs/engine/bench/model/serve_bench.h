// serve_bench.h: generation through the engine alone: decoding at several batch sizes, and reading a prompt. One JSON line for each measurement.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/device.h"
#include "infer/runner.h"

namespace engine::bench {

struct ServeBench {
  std::string shape = "7b";            // of bench_model.h
  DeviceChoice device;
  std::vector<std::int64_t> batches{1, 8, 32, 64};
  std::int64_t context = 512;          // tokens of each prompt
  std::int64_t prefill = 2048;         // tokens of the prompt whose reading is timed; 0: none is
  std::int64_t new_tokens = 64;        // decoded by every sequence while all of them run
  std::int64_t beside = 0;             // tokens of a prompt that is read while each batch decodes; 0: none is
  std::int64_t beside_step = 256;      // GeneratorOptions::tokens_beside then; the inference server's on a GPU
  std::int64_t adapters = 0;           // that the sequences have in turn; 0: none
  std::int64_t rank = 16;
  bool dora = false, own_head = false;  // of the adapters
  std::int64_t memory_budget = 0;      // bytes of a GPU; 0: what is free
  std::int64_t crossover = 0;          // RunnerOptions
  bool graphs = true, phases = true, keep_decoded = true;
  SumOrder order = SumOrder::fastest;
  std::filesystem::path dir;           // where a CPU's weights are written
  int threads = 0;
};

// Throws unsupported when the device is not there, oom when it is too small.
void run_serve_bench(const ServeBench& bench);

}  // namespace engine::bench
