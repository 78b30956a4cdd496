// cuda_runner.h: generation on a GPU (infer/runner.h). What it computes is defined by the CPU's HostRunner in bf16; activations are bf16 here.
//   A step's input is written to pinned memory and copied at once; its tokens come back at once; nothing else waits. Steps in which every sequence takes
//   one token and all tokens are chosen on the device are captured for a few batch sizes and replayed; rows that fill a batch up compute nothing that
//   anyone reads.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <vector>

#include "cuda/infer/decoder.h"
#include "infer/runner.h"
#include "train/backend.h"

namespace engine::cuda {

class CudaRunner final : public Runner {
 public:
  // Throws unsupported for a shape that the device does not run, oom before anything is allocated when the budget is too small.
  CudaRunner(const TrainingBase& base, int device, const RunnerOptions& options);
  ~CudaRunner() override;

  const ModelSpec& spec() const noexcept override { return base_.spec; }
  KvMemory& memory() noexcept override { return *kv_; }
  std::string device() const override { return name_; }
  std::string memory_table() const override { return plan_.table; }
  void check_adapter(const LoraAdapter& adapter) const override;
  bool chooses(const Sampling& sampling) const noexcept override;
  StepTimes times() const override { return times_; }
  std::unique_ptr<Model::Turn> turn() override { return nullptr; }
  StepOutput run(const Step& step) override;
  void losses(Rows logits, std::span<const std::uint32_t> tokens, std::span<float> losses) override;

 private:
  // A captured batch: rows, positions below most_tokens, adapters' ranks up to `ranks`, and what else adapters have. Rows that have heads of their own meet
  // them behind the captured work: which these are is known on the host alone.
  struct Capture {
    std::int64_t rows, most_tokens, ranks;
    bool dora, embeddings, heads;
    auto operator<=>(const Capture&) const = default;
  };
  void prepare();
  void practise(std::int64_t sequences, std::int64_t tokens);
  void place_adapters(const Step& step, StepAdapters& adapters);
  StepShape shape_of(const Step& step, bool captured) const;
  void place_heads(const Step& step, StepShape& shape);
  void plan_tiles(const Step& step, StepShape& shape);
  RunnerInput write_input(const Step& step, const StepShape& shape, StepAdapters& adapters);
  // The step's input to the device, and its tokens, log-probabilities and scores back: part of a captured step.
  void send_input();
  void fetch_results(const StepShape& shape);
  struct Results {
    std::uint32_t* tokens;
    float *logprobs, *scores;
  };
  Results results() const;  // in pinned memory
  void compute(const StepShape& shape, const RunnerInput& input, const StepAdapters& adapters);
  void replay(const StepShape& shape, const RunnerInput& input, const StepAdapters& adapters);
  void grow_logits();
  void choose_in_pieces(const Step& step, const StepShape& shape, const RunnerInput& input);
  // All rows' states after the final norm, to pinned memory; and from there those that are wanted, in fp32.
  void fetch_states(const StepShape& shape);
  Rows wanted_states(const Step& step);
  StepOutput run_step(const Step& step, bool wants_states);
  StepOutput collect(const Step& step);
  void mark(Phase phase, bool starts = false);
  void read_marks();

  TrainingBase base_;
  int device_;
  RunnerOptions options_;
  Geometry geometry_;
  RunnerPlan plan_;
  std::string name_;

  // The stream outlives what its work uses.
  Stream stream_;
  DeviceMemory fixed_, decoded_memory_;
  RunnerMemory memory_;
  DecodedWeights decoded_;
  std::unique_ptr<DeviceKv> kv_;
  DeviceRopes ropes_;
  AdapterCache adapters_;
  std::unique_ptr<Products> products_;
  std::unique_ptr<Decoder> decoder_;
  PinnedMemory staging_, results_, host_logits_;
  PinnedMemory host_states_;  // bf16 [max_rows, hidden]; taken with the first states that are wanted
  std::int64_t staged_bytes_ = 0;
  std::map<Capture, Graph> graphs_;

  // Vectors keep their memory from step to step.
  std::vector<std::int32_t> adapter_of_, other_adapter_of_;  // of every row
  std::vector<AdapterSegment> segments_;
  struct AdapterHead {
    std::int64_t end;  // of its rows
    const bf16* head;  // null: the base's
  };
  std::vector<AdapterHead> heads_of_;  // of every run of rows with one adapter
  std::vector<HeadRows> heads_;
  std::vector<PagedChunk> tiles_;
  std::vector<ChosenToken> chosen_;
  std::vector<double> log_sums_;  // of the rows whose logits were wanted
  std::vector<WantedRow> asked_of_head_;
  std::vector<float> states_;

  struct Mark {
    std::unique_ptr<Event> event;
    Phase phase;
    bool starts;
  };
  std::vector<Mark> marks_;
  std::size_t marked_ = 0;
  StepTimes times_;
};

}  // namespace engine::cuda
