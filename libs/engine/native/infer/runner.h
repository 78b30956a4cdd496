// runner.h: the arithmetic of generation on one device: a step's rows of tokens in, logits, chosen tokens or hidden states out.
//   The generator decides what a step computes (scheduler.h) and in which blocks keys and values lie (kv_cache.h); a runner owns the weights it reads, the
//   blocks' memory and the device. One thread at a time, a generator's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/exec.h"
#include "infer/kv_memory.h"
#include "infer/sampler.h"
#include "model/lora.h"
#include "model/model.h"
#include "model/spec.h"
#include "ops/attention_decode.h"
#include "ops/matrix.h"

namespace engine {

// Consecutive rows that one adapter acts on; null: none. Segments cover a step's rows in order, and no two neighbours have the same.
struct AdapterRows {
  std::int64_t first = 0, count = 0;
  std::shared_ptr<const LoraAdapter> adapter;
};

// What is wanted of one row.
enum class Want : std::uint8_t {
  logits,  // its logits, on the host
  choice,  // a token, chosen by `sampling` as TokenSampler::choose does without penalties, biases and constraints
  score,   // the log-probability of `target`
  hidden,  // its hidden state after the final norm, on the host
};
struct WantedRow {
  std::int64_t row = 0;
  Want want = Want::logits;
  const Sampling* sampling = nullptr;
  std::int64_t position = 0;  // of the token to be chosen, in its sequence
  std::uint32_t target = 0;
};

// Borrows everything, until run() returns.
struct Step {
  std::span<const std::uint32_t> ids;        // [R]
  std::span<const std::int32_t> positions;   // [R] in their sequences
  std::span<const std::int32_t> lengths;     // [R] of their sequences, as rotary scaling counts it (rope_cache.h)
  std::span<const KvRow> rows;               // [R]; rows of one sequence follow one another
  std::span<const KvSequence> sequences;
  std::span<const AdapterRows> adapters;
  std::span<const WantedRow> wanted;         // rows ascending
};

// A token with its log-probability under the model's own distribution.
using ChosenToken = TokenLogprob;

// All in the order of Step::wanted. They belong to the runner and live until its next run().
struct StepOutput {
  Rows logits;                          // [those that want logits, vocab]
  std::span<const ChosenToken> chosen;  // of those that want a choice or a score; a log-probability that is not finite tells of broken logits
  Rows hidden;                          // [those that want hidden, hidden]
};

// Where a device's time went, in milliseconds, since the runner was made. Zeros where it is not measured.
struct StepTimes {
  double products = 0;   // of the blocks, with norms and activations
  double attention = 0;  // with rotations and writing keys and values
  double sampling = 0;   // the head and choosing tokens
};

struct RunnerOptions {
  std::int64_t max_rows = 0;       // of a step
  std::int64_t max_sequences = 0;  // of a step
  std::int64_t mixed_rows = 0;     // of a step that reads a prompt while others advance, for which `prepare` prepares too; 0: none is expected
  std::int64_t most_mixed_rows = 0;  // of a larger such step: twice mixed_rows, four times, … up to this
  std::int64_t memory_budget = 0;  // bytes of device memory, weights included; 0: what is free, less some for others
  std::int64_t kv_bytes = 0;       // of it, for keys and values; 0: what nothing else needs
  SumOrder order = SumOrder::fastest;
  bool graphs = true;              // steps of one token for each sequence are captured once and replayed
  bool prepare = false;            // choose algorithms, load kernels and capture steps when made: the first requests do not wait for that
  bool timed = false;              // measure StepTimes; nothing is captured then
  bool keep_decoded = true;        // NF4 products are also kept as bf16 where memory allows
  std::int64_t crossover = 0;      // rows up to which NF4 weights are decoded while they are read; 0: the device's own
};

class Runner {
 public:
  virtual ~Runner() = default;
  Runner() = default;
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  virtual const ModelSpec& spec() const noexcept = 0;
  virtual KvMemory& memory() noexcept = 0;
  // Where it runs, for people: "cpu (avx512, 2 threads)", "cuda:0 (NVIDIA H200, sm_90)".
  virtual std::string device() const = 0;
  // Throws unsupported, saying what, when this runner cannot run the adapter.
  virtual void check_adapter(const LoraAdapter& adapter) const = 0;
  // Whether it chooses tokens itself under these settings.
  virtual bool chooses(const Sampling& sampling) const noexcept = 0;
  virtual StepTimes times() const { return {}; }
  // What it took of its device's memory, for people: a line for each part.
  virtual std::string memory_table() const { return ""; }
  // Held while a step is computed and its tokens are chosen: others that share the processors wait. Null when nobody does.
  virtual std::unique_ptr<Model::Turn> turn() = 0;

  // Throws oom, and stays usable; device_lost, and does not.
  virtual StepOutput run(const Step& step) = 0;
  // losses[i] = −log p(tokens[i]) of row i of logits that run() gave.
  virtual void losses(Rows logits, std::span<const std::uint32_t> tokens, std::span<float> losses) = 0;
};

}  // namespace engine
