#include "cuda/infer/cuda_runner.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>

#include "core/bf16.h"
#include "core/error.h"
#include "cuda/infer/device_turn.h"
#include "cuda/ops/rmsnorm.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

constexpr std::int64_t kMostRank = 256;
constexpr std::int64_t kLeastTokens = 512;  // of a captured batch, and of any step: shorter sequences share its shape

constexpr std::int64_t kBuckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};  // rows of captured batches

// The captured batch that holds so many rows; 0: none does.
std::int64_t bucket_rows(std::int64_t rows) {
  for (const std::int64_t bucket : kBuckets)
    if (rows <= bucket) return bucket;
  return 0;
}

// Batches are captured for some numbers of rows: a step has room for the one that holds all sequences.
RunnerOptions rounded(RunnerOptions options) {
  require(options.max_rows >= 1 && options.max_sequences >= 1 && options.max_sequences <= options.max_rows, "a step of ", options.max_rows, " rows of ",
          options.max_sequences, " sequences");
  options.max_sequences = std::max(options.max_sequences, bucket_rows(options.max_sequences));
  options.max_rows = std::max(options.max_rows, options.max_sequences);
  return options;
}

RunnerPlan plan_on(int device, const ModelSpec& spec, const Geometry& geometry, const DecoderWeights& weights, const RunnerOptions& options) {
  use_device(device);
  return plan_runner(spec, geometry, base_format(weights), options, device_memory_info().free_bytes);
}

std::int64_t power_of_two(std::int64_t n, std::int64_t least) {
  std::int64_t power = least;
  while (power < n) power *= 2;
  return power;
}

bool single(const Step& step, std::size_t row) {
  const bool first = row == 0 || step.rows[row - 1].sequence != step.rows[row].sequence;
  return first && (row + 1 == step.rows.size() || step.rows[row + 1].sequence != step.rows[row].sequence);
}

// Every row its own sequence's only one, and its token chosen here.
bool may_be_captured(const Step& step) {
  if (step.wanted.size() != step.rows.size() || step.sequences.size() != step.rows.size()) return false;
  return std::ranges::all_of(step.wanted, [](const WantedRow& row) { return row.want == Want::choice; });
}

std::int64_t rank_bucket(std::int64_t rank) { return rank == 0 ? 0 : power_of_two(rank, 16); }

}  // namespace

CudaRunner::CudaRunner(const TrainingBase& base, int device, const RunnerOptions& options)
    : base_(base), device_(device), options_(rounded(options)), geometry_(make_geometry(base.spec)),
      plan_(plan_on(device, base.spec, geometry_, base.weights, options_)), fixed_(plan_.fixed), decoded_memory_(plan_.decoded), ropes_(base.spec, options_.max_rows),
      adapters_(geometry_, base.spec.layers, plan_.adapters) {
  const DeviceInfo info = device_info(device);
  name_ = text("cuda:", device, " (", info.name, ", sm_", info.major, info.minor, ")");
  const BaseFormat format = base_format(base_.weights);
  DeviceArena arena(fixed_.data(), fixed_.bytes());
  memory_ = RunnerMemory::take(arena, base_.spec, geometry_, format, options_, {.decoded = plan_.decoded > 0});
  // Copies are decoded from the weights as stored: exact, unlike packed ones.
  if (plan_.decoded > 0) decoded_.resize(format.size());
  DeviceArena copies(decoded_memory_.data(), decoded_memory_.bytes());
  const auto decode = [&](std::int64_t layer, Group group, const Nf4Parts& parts) {
    const GroupShape& shape = geometry_[group];
    bf16*& copy = decoded_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(group)];
    copy = copies.take<bf16>(shape.elements());
    decode_parts(parts, shape, copy, stream_);
  };
  upload_weights(memory_.weights, base_.spec, geometry_, base_.weights, stream_, plan_.decoded > 0 ? decode : SeeStored{});
  if (!base_.spec.tied) upload_table(base_.weights.embedding, memory_.embedding, false, stream_);
  kv_ = std::make_unique<DeviceKv>(base_.spec, plan_.kv, stream_);
  const StepBuffers& b = memory_.buffers;
  const std::int64_t crossover = options_.crossover > 0 ? options_.crossover : kNf4Crossover;
  products_ = std::make_unique<Products>(base_.spec, geometry_, memory_.weights, decoded_, adapters_, ProductBuffers{b.scratch, b.normed, b.gate_up, b.low, b.gemv_workspace},
                                         Products::Options{options_.order, crossover});
  decoder_ = std::make_unique<Decoder>(base_.spec, geometry_, memory_, *kv_, ropes_, adapters_, *products_);
  fill_bytes(b.gemv_workspace, 0, b.gemv_workspace_bytes, stream_);
  fill_bytes(b.attention_workspace, 0, b.attention_workspace_bytes, stream_);
  staging_ = PinnedMemory(b.input_bytes);
  results_ = PinnedMemory(options_.max_rows * 3 * 4);
  host_logits_ = PinnedMemory(options_.max_sequences * base_.spec.vocab * 4);
  stream_.synchronize();
  if (options_.prepare) prepare();
}

// Every kernel that is new to a process is loaded when it is first used, every product's algorithm chosen, every batch captured: together several times a
// short prompt's own time. What is written here to keys and values is cleared again.
void CudaRunner::prepare() {
  for (const std::int64_t rows : kBuckets) {
    if (rows > options_.max_sequences) break;
    products_->tune(rows, kv_->data(), kv_->bytes(), stream_);
    practise(rows, 1);
  }
  if (options_.mixed_rows > 0)
    for (std::int64_t rows = options_.mixed_rows; rows <= std::max(options_.mixed_rows, options_.most_mixed_rows); rows *= 2)
      products_->tune(rows, kv_->data(), kv_->bytes(), stream_);
  // With one order for any rows prompts of all lengths take the same kernels; else the library's differ.
  if (options_.order == SumOrder::same_for_any_rows) practise(1, std::min(DeviceKv::kBlockTokens, options_.max_rows));
  else
    for (std::int64_t tokens = 256; tokens <= options_.max_rows; tokens *= 2) practise(1, tokens);
  fill_bytes(kv_->data(), 0, kv_->bytes(), stream_);
  stream_.synchronize();
  times_ = {};
}

// One step of so many sequences at their beginnings, in the same blocks; none where the blocks are too few.
void CudaRunner::practise(std::int64_t sequences, std::int64_t tokens) {
  if (ceil_div(tokens, DeviceKv::kBlockTokens) > kv_->blocks()) return;
  std::vector<std::int32_t> table(static_cast<std::size_t>(ceil_div(tokens, DeviceKv::kBlockTokens))), positions;
  std::iota(table.begin(), table.end(), 0);
  const auto rows = static_cast<std::size_t>(sequences * tokens);
  const std::vector<std::uint32_t> ids(rows, 0);
  const std::vector<std::int32_t> lengths(rows, static_cast<std::int32_t>(tokens));
  const std::vector<KvSequence> all(static_cast<std::size_t>(sequences), KvSequence{table});
  const std::vector<AdapterRows> adapters{{0, sequences * tokens, nullptr}};
  const Sampling greedy;
  std::vector<KvRow> places;
  std::vector<WantedRow> wanted;
  for (std::int64_t sequence = 0; sequence < sequences; ++sequence) {
    for (std::int64_t position = 0; position < tokens; ++position) {
      positions.push_back(static_cast<std::int32_t>(position));
      places.push_back({static_cast<std::int32_t>(sequence), positions.back()});
    }
    wanted.push_back({.row = (sequence + 1) * tokens - 1, .want = Want::choice, .sampling = &greedy, .position = tokens});
  }
  (void)run({ids, positions, lengths, places, all, adapters, wanted});
}

CudaRunner::~CudaRunner() {
  try {
    use_device(device_);
    stream_.synchronize();
  } catch (...) {
    // The device is lost; whoever uses it next is told.
  }
}

void CudaRunner::check_adapter(const LoraAdapter& adapter) const {
  require(Code::internal, adapter.bound(), "a DoRA adapter is used without the norms of its base");
  require(Code::unsupported, widest_slot(adapter) <= kMostRank, "on a GPU adapters have ranks up to ", kMostRank, "; this one's is ", adapter.config().rank);
  const std::int64_t bytes = DeviceAdapter::bytes(adapter, geometry_, spec().layers);
  require(Code::oom, bytes <= adapters_.budget(), "the adapter needs ", bytes, " bytes of device memory; ", adapters_.budget(), " are set aside for adapters");
}

bool CudaRunner::chooses(const Sampling& s) const noexcept {
  return s.repetition_penalty == 1 && s.presence_penalty == 0 && s.frequency_penalty == 0 && s.logit_bias.empty() && s.constraint == nullptr && s.top_logprobs == 0;
}

// Puts the step's adapters on the device and tells for every row which it has.
void CudaRunner::place_adapters(const Step& step, StepAdapters& adapters) {
  adapters_.begin_step();
  adapter_of_.assign(step.ids.size(), -1);
  other_adapter_of_.assign(step.ids.size(), -1);
  segments_.clear();
  heads_of_.clear();
  std::int64_t ranks = 0;
  for (const AdapterRows& rows : step.adapters) {
    heads_of_.push_back({rows.first + rows.count, nullptr});
    if (rows.adapter == nullptr) continue;
    const AdapterCache::Resident resident = adapters_.use(rows.adapter, stream_);
    ranks = std::max(ranks, widest_slot(*rows.adapter));
    adapters.dora |= rows.adapter->config().dora;
    adapters.embeddings |= resident.adapter->embedding() != nullptr;
    heads_of_.back().head = resident.adapter->head();
    const bool many = rows.count >= kSegmentRows;
    if (many) segments_.push_back({rows.first, rows.count, resident.adapter});
    adapters.any_other |= !many;
    for (std::int64_t row = rows.first; row < rows.first + rows.count; ++row) {
      adapter_of_[static_cast<std::size_t>(row)] = resident.number;
      if (!many) other_adapter_of_[static_cast<std::size_t>(row)] = resident.number;
    }
  }
  adapters.ranks = rank_bucket(ranks);
  adapters.segments = segments_;
}

StepShape CudaRunner::shape_of(const Step& step, bool captured) const {
  StepShape shape;
  shape.rows = static_cast<std::int64_t>(step.ids.size());
  shape.wanted = static_cast<std::int64_t>(step.wanted.size());
  shape.captured = captured;
  if (captured) shape.rows = shape.wanted = bucket_rows(shape.rows);
  shape.most_tokens = power_of_two(std::int64_t{*std::ranges::max_element(step.positions)} + 1, std::min(kLeastTokens, power_of_two(spec().context, kPageTokens)));
  shape.table_stride = shape.most_tokens / kPageTokens;
  shape.all_wanted = captured || shape.wanted == shape.rows;
  for (const WantedRow& row : step.wanted) (row.want == Want::score ? shape.scores : shape.choices) = true;
  // With one order for any rows every row meets the cache by itself; else the rows of a prompt's chunk share what they read.
  const bool alone = options_.order == SumOrder::same_for_any_rows;
  shape.any_order = !alone;
  if (captured || alone) {
    shape.singles.push_back({0, shape.rows});
    shape.apart = true;
    for (std::size_t row = 0; row < step.rows.size(); ++row) shape.apart &= single(step, row);
    return shape;
  }
  shape.apart = true;
  for (std::size_t row = 0; row < step.rows.size(); ++row) {
    if (!single(step, row)) continue;
    const auto r = static_cast<std::int64_t>(row);
    if (shape.singles.empty() || shape.singles.back().first + shape.singles.back().count != r) shape.singles.push_back({r, 0});
    ++shape.singles.back().count;
  }
  return shape;
}

// Which head each of the wanted rows has, where not all have the base's. Rows that fill a captured batch up go with the last.
void CudaRunner::place_heads(const Step& step, StepShape& shape) {
  heads_.clear();
  if (std::ranges::all_of(heads_of_, [](const AdapterHead& of) { return of.head == nullptr; })) return;
  std::size_t run = 0;
  for (std::size_t i = 0; i < step.wanted.size(); ++i) {
    while (step.wanted[i].row >= heads_of_[run].end) ++run;
    if (heads_.empty() || heads_.back().head != heads_of_[run].head) heads_.push_back({static_cast<std::int64_t>(i), 0, heads_of_[run].head});
    ++heads_.back().count;
  }
  if (!heads_.empty()) heads_.back().count = shape.wanted - heads_.back().first;
  shape.heads = heads_;
}

void CudaRunner::plan_tiles(const Step& step, StepShape& shape) {
  tiles_.clear();
  if (shape.captured || options_.order == SumOrder::same_for_any_rows) return;
  std::vector<PagedChunk> chunks;
  for (std::size_t row = 0; row < step.rows.size(); ++row) {
    if (single(step, row)) continue;
    if (chunks.empty() || chunks.back().sequence != step.rows[row].sequence)
      chunks.push_back({static_cast<std::int32_t>(row), 0, step.rows[row].sequence, step.rows[row].position});
    ++chunks.back().rows;
  }
  if (!chunks.empty()) tiles_ = paged_tiles(chunks);
  shape.tiles = static_cast<std::int64_t>(tiles_.size());
}

RunnerInput CudaRunner::write_input(const Step& step, const StepShape& shape, StepAdapters& adapters) {
  const auto rows = step.ids.size();
  // A captured batch finds everything where its first step had it.
  const StepSizes sizes{shape.rows, shape.captured ? shape.rows : static_cast<std::int64_t>(step.sequences.size()), shape.table_stride, shape.tiles, shape.wanted};
  DeviceArena host_arena(staging_.data(), staging_.bytes());
  const RunnerInput host = RunnerInput::take(host_arena, sizes);
  std::ranges::copy(step.ids, host.ids);
  std::ranges::copy(step.positions, host.positions);
  for (std::size_t row = 0; row < rows; ++row) host.sequences[row] = step.rows[row].sequence;
  std::ranges::copy(adapter_of_, host.adapters);
  std::ranges::copy(other_adapter_of_, host.other_adapters);
  for (std::int64_t row = 0; row < shape.rows; ++row) host.numbers[row] = static_cast<std::int32_t>(row);
  for (auto row = static_cast<std::int64_t>(rows); row < shape.rows; ++row) {
    host.ids[row] = 0;
    host.positions[row] = 0;
    host.sequences[row] = host.adapters[row] = host.other_adapters[row] = -1;
  }
  for (std::size_t s = 0; s < step.sequences.size(); ++s) {
    const std::span<const std::int32_t> blocks = step.sequences[s].block_table;
    const std::size_t count = std::min(blocks.size(), static_cast<std::size_t>(shape.table_stride));
    std::copy_n(blocks.begin(), count, host.tables + static_cast<std::int64_t>(s) * shape.table_stride);
  }
  std::ranges::copy(tiles_, host.tiles);
  for (std::size_t i = 0; i < static_cast<std::size_t>(shape.wanted); ++i) {
    host.settings[i] = {.seed = 0, .temperature = 0, .top_p = 1, .min_p = 0, .top_k = 0};
    host.wanted[i] = host.token_positions[i] = host.scored[i] = -1;
    host.targets[i] = 0;
    if (i >= step.wanted.size()) continue;
    const WantedRow& wanted = step.wanted[i];
    host.wanted[i] = static_cast<std::int32_t>(wanted.row);
    if (wanted.want == Want::score) {
      host.scored[i] = 0;
      host.targets[i] = wanted.target;
      continue;
    }
    // Where the logits are wanted, the largest one's log-probability tells their sum.
    host.token_positions[i] = static_cast<std::int32_t>(wanted.position);
    if (wanted.want == Want::choice) {
      const Sampling& s = *wanted.sampling;
      host.settings[i] = {.seed = s.seed, .temperature = s.temperature, .top_p = s.top_p, .min_p = s.min_p, .top_k = s.top_k};
    }
  }
  staged_bytes_ = host_arena.used();
  DeviceArena device_arena(memory_.buffers.input, memory_.buffers.input_bytes);
  const RunnerInput input = RunnerInput::take(device_arena, sizes);
  adapters.all = input.adapters;
  adapters.others = input.other_adapters;
  return input;
}

void CudaRunner::mark(Phase phase, bool starts) {
  if (!options_.timed) return;
  if (marked_ == marks_.size()) marks_.push_back({std::make_unique<Event>(Event::Timing::on), phase, starts});
  marks_[marked_].phase = phase;
  marks_[marked_].starts = starts;
  marks_[marked_].event->record(stream_);
  ++marked_;
}

void CudaRunner::read_marks() {
  for (std::size_t i = 1; i < marked_; ++i) {
    if (marks_[i].starts) continue;
    double& time = marks_[i].phase == Phase::products ? times_.products : marks_[i].phase == Phase::attention ? times_.attention : times_.sampling;
    time += marks_[i].event->milliseconds_since(*marks_[i - 1].event);
  }
  marked_ = 0;
}

void CudaRunner::send_input() { copy_to_device(memory_.buffers.input, staging_.data(), staged_bytes_, stream_); }

void CudaRunner::fetch_results(const StepShape& shape) {
  const StepBuffers& b = memory_.buffers;
  if (shape.choices) {
    copy_to_host(results().tokens, b.tokens, shape.wanted * 4, stream_);
    copy_to_host(results().logprobs, b.logprobs, shape.wanted * 4, stream_);
  }
  if (shape.scores) copy_to_host(results().scores, b.scores, shape.wanted * 4, stream_);
}

CudaRunner::Results CudaRunner::results() const {
  auto* first = results_.as<float>();
  return {results_.as<std::uint32_t>(), first + options_.max_rows, first + 2 * options_.max_rows};
}

void CudaRunner::compute(const StepShape& shape, const RunnerInput& input, const StepAdapters& adapters) {
  send_input();
  mark(Phase::products, true);
  decoder_->hidden(shape, input, adapters, [this](Phase phase) { mark(phase); }, stream_);
}

void CudaRunner::replay(const StepShape& shape, const RunnerInput& input, const StepAdapters& adapters) {
  const auto choose = [&] {
    for (std::int64_t first = 0; first < shape.wanted; first += memory_.buffers.wanted_rows)
      decoder_->choose(shape, input, first, std::min(memory_.buffers.wanted_rows, shape.wanted - first), stream_);
    fetch_results(shape);
  };
  const bool own_heads = !shape.heads.empty();
  Graph& graph = graphs_[{shape.rows, shape.most_tokens, adapters.ranks, adapters.dora, adapters.embeddings, own_heads}];
  if (graph.empty()) {
    const auto work = [&] {
      send_input();
      decoder_->hidden(shape, input, adapters, [](Phase) {}, stream_);
      if (!own_heads) choose();
    };
    // What a first use prepares (kernels to load, algorithms to choose) may not be captured: it runs once as it is. The same keys and values are written
    // to the same slots again, and the same tokens chosen.
    work();
    stream_.synchronize();
    graph = Graph::capture(stream_, work);
  }
  graph.launch(stream_);
  if (own_heads) choose();
}

void CudaRunner::grow_logits() {
  stream_.synchronize();
  PinnedMemory larger(2 * host_logits_.bytes());
  std::memcpy(larger.data(), host_logits_.data(), static_cast<std::size_t>(host_logits_.bytes()));
  host_logits_ = std::move(larger);
}

void CudaRunner::choose_in_pieces(const Step& step, const StepShape& shape, const RunnerInput& input) {
  const StepBuffers& b = memory_.buffers;
  std::int64_t copied = 0;
  for (std::int64_t first = 0; first < shape.wanted; first += b.wanted_rows) {
    const std::int64_t count = std::min(b.wanted_rows, shape.wanted - first), vocab = spec().vocab;
    decoder_->choose(shape, input, first, count, stream_);
    for (std::int64_t i = first; i < std::min(first + count, static_cast<std::int64_t>(step.wanted.size())); ++i)
      if (step.wanted[static_cast<std::size_t>(i)].want == Want::logits) {
        if (host_logits_.bytes() < (copied + 1) * vocab * 4) grow_logits();
        copy_to_host(host_logits_.as<float>() + copied++ * vocab, b.logits + (i - first) * vocab, vocab * 4, stream_);
      }
  }
}

StepOutput CudaRunner::collect(const Step& step) {
  const auto [tokens, logprobs, scores] = results();
  stream_.synchronize();
  chosen_.clear();
  log_sums_.clear();
  for (std::size_t i = 0; i < step.wanted.size(); ++i) {
    switch (step.wanted[i].want) {
      case Want::choice: chosen_.push_back({tokens[i], logprobs[i]}); break;
      case Want::score: chosen_.push_back({step.wanted[i].target, scores[i]}); break;
      case Want::hidden: break;  // no business of the head
      case Want::logits: {
        const float* row = host_logits_.as<float>() + static_cast<std::int64_t>(log_sums_.size()) * spec().vocab;
        log_sums_.push_back(static_cast<double>(row[tokens[i]]) - logprobs[i]);
        break;
      }
    }
  }
  return {Rows(host_logits_.as<float>(), static_cast<std::int64_t>(log_sums_.size()), spec().vocab), chosen_, {}};
}

void CudaRunner::fetch_states(const StepShape& shape) {
  const StepBuffers& b = memory_.buffers;
  const std::int64_t hidden = spec().hidden;
  if (host_states_.bytes() == 0) host_states_ = PinnedMemory(options_.max_rows * hidden * static_cast<std::int64_t>(sizeof(bf16)));
  const View<bf16> normed{b.normed, shape.rows, hidden};
  rmsnorm_forward({memory_.weights.final_norm, spec().norm_eps, spec().norm_offset}, View<bf16>{b.x, shape.rows, hidden}, {}, normed, nullptr, stream_);
  copy_to_host(host_states_.data(), normed.data, shape.rows * hidden * static_cast<std::int64_t>(sizeof(bf16)), stream_);
}

Rows CudaRunner::wanted_states(const Step& step) {
  const std::int64_t hidden = spec().hidden;
  states_.clear();
  for (const WantedRow& wanted : step.wanted) {
    if (wanted.want != Want::hidden) continue;
    const bf16* row = host_states_.as<bf16>() + wanted.row * hidden;
    for (std::int64_t i = 0; i < hidden; ++i) states_.push_back(to_float(row[i]));
  }
  return {states_.data(), static_cast<std::int64_t>(states_.size()) / hidden, hidden};
}

// What is wanted of the head is one list, and states are another: the head's products are not made for rows whose states alone are wanted.
StepOutput CudaRunner::run(const Step& step) {
  const auto wants_state = [](const WantedRow& wanted) { return wanted.want == Want::hidden; };
  if (std::ranges::none_of(step.wanted, wants_state)) return run_step(step, false);
  asked_of_head_.clear();
  std::ranges::remove_copy_if(step.wanted, std::back_inserter(asked_of_head_), wants_state);
  Step head = step;
  head.wanted = asked_of_head_;
  StepOutput output = run_step(head, true);
  output.hidden = wanted_states(step);
  return output;
}

StepOutput CudaRunner::run_step(const Step& step, bool wants_states) {
  use_device(device_);
  kv_->check();
  require(Code::internal, static_cast<std::int64_t>(step.ids.size()) <= options_.max_rows && static_cast<std::int64_t>(step.sequences.size()) <= options_.max_sequences,
          "a step of ", step.ids.size(), " rows of ", step.sequences.size(), " sequences; the runner was made for ", options_.max_rows, " and ", options_.max_sequences);
  try {
    StepAdapters adapters;
    place_adapters(step, adapters);
    std::unique_lock<std::mutex> turn;
    if (adapters.ranks > 0 && static_cast<std::int64_t>(step.ids.size()) <= kGemvNormRows) turn = device_turn(device_);
    ropes_.prepare(step.positions, step.lengths, stream_);
    const bool captured = options_.graphs && !options_.timed && may_be_captured(step) && bucket_rows(static_cast<std::int64_t>(step.ids.size())) > 0 && !ropes_.any_by_row();
    StepShape shape = shape_of(step, captured);
    if (captured) {
      // Segments are the eager path's.
      adapters.segments = {};
      adapters.any_other = adapters.ranks > 0;
      other_adapter_of_ = adapter_of_;
    }
    place_heads(step, shape);
    plan_tiles(step, shape);
    const RunnerInput input = write_input(step, shape, adapters);
    if (captured) {
      replay(shape, input, adapters);
    } else {
      compute(shape, input, adapters);
      if (wants_states) fetch_states(shape);
      choose_in_pieces(step, shape, input);
      mark(Phase::sampling);
      fetch_results(shape);
    }
    const StepOutput output = collect(step);
    read_marks();
    return output;
  } catch (const Error& error) {
    marked_ = 0;
    // What was given must have ended before its memory is used for something else; a lost device throws here, and says so.
    if (error.code() != Code::device_lost) stream_.synchronize();
    throw;
  }
}

void CudaRunner::losses(Rows logits, std::span<const std::uint32_t> tokens, std::span<float> losses) {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    losses[i] = static_cast<float>(log_sums_[i] - static_cast<double>(logits.row(static_cast<std::int64_t>(i))[tokens[i]]));
}

}  // namespace engine::cuda
