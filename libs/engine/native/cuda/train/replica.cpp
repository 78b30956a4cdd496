#include "cuda/train/replica.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "cuda/model/decomposition.h"
#include "cuda/ops/adamw.h"
#include "cuda/ops/cross_entropy.h"
#include "cuda/ops/elementwise.h"
#include "cuda/ops/embed.h"
#include "cuda/ops/reduce.h"
#include "cuda/ops/rmsnorm.h"
#include "model/forward.h"

namespace engine::cuda {
namespace {

// What is left to the driver, to kernels that are loaded when first used, and to whoever else computes on the device.
constexpr std::int64_t kLeftFree = std::int64_t{512} << 20;

std::int64_t budget_of(std::int64_t asked) {
  if (asked > 0) return asked;
  return std::max<std::int64_t>(0, device_memory_info().free_bytes - kLeftFree);
}

// Products are planned for a number of rows when it first comes, so rows come in few numbers: tokens that belong to no row of the batch fill them up. They
// are a sequence of their own without labels, so that all their gradients are zeros; labels that fill up weigh nothing.
#ifdef ENGINE_CUDA_EMULATED
constexpr std::int64_t kRowMultiple = 8;  // every row costs the emulation time
#else
constexpr std::int64_t kRowMultiple = 64;
#endif
std::int64_t filled(std::int64_t rows) { return (rows + kRowMultiple - 1) / kRowMultiple * kRowMultiple; }

MemoryPlan first_plan(const RunShape& shape, int device, std::int64_t tokens, std::int64_t budget) {
  use_device(device);
  return plan_memory(shape, token_bucket(tokens), budget_of(budget));
}

template <class T>
void copy_in(T* to, const std::vector<T>& from) {
  std::ranges::copy(from, to);
}

}  // namespace

Replica::Replica(int device, const TrainingBase& base, const LoraAdapter& adapter, const std::vector<OptimizerRun>& runs, std::int64_t tokens, std::int64_t budget)
    : device_(device), base_(base), adapter_(adapter), runs_(runs), geometry_(make_geometry(base.spec, adapter)), format_(base_format(base.weights)),
      lowest_(lowest_trained_layer(&adapter)), plan_(first_plan(shape(), device, tokens, budget)), fixed_memory_(plan_.use.fixed), results_(static_cast<std::int64_t>(sizeof(StepScalars))),
      constants_(static_cast<std::int64_t>(runs.size() * sizeof(AdamWConstants))), ropes_(base.spec.ropes) {
  DeviceArena arena(fixed_memory_.data(), fixed_memory_.bytes());
  fixed_ = FixedMemory::take(arena, shape());
  take_step_memory(plan_);
  upload_weights(fixed_.weights, base_.spec, geometry_, base_.weights, stream_);
  write_values(adapter_.data());
  fill_bytes(fixed_.gradients, 0, adapter_.size() * 4, stream_);
  for (std::size_t r = 0; r < runs_.size(); ++r) {
    const std::vector<TensorSpec> specs = optimizer_state_specs(runs_[r]);
    for (std::size_t t = 0; t < specs.size(); ++t) {
      const std::vector<std::uint8_t> zeros(static_cast<std::size_t>(specs[t].shape[0] * dtype_size(specs[t].dtype)), 0);
      write_state(r, t, zeros.data());
    }
  }
  stream_.synchronize();
}

Replica::~Replica() { abandon(); }

void Replica::abandon() noexcept {
  try {
    use_device(device_);
    stream_.synchronize();
    beside_.stream.synchronize();
    if (stage_) stage_->synchronize();
    if (copies_) copies_->synchronize();
    paced_ = marked_ = 0;
  } catch (...) {
    // The device is lost; whoever uses it next is told.
  }
}

void Replica::take_step_memory(const MemoryPlan& plan) {
  const ModelSpec& spec = base_.spec;
  step_memory_ = DeviceMemory(plan.use.step);
  DeviceArena arena(step_memory_.data(), step_memory_.bytes());
  step_ = StepMemory::take(arena, shape(), plan.choice, plan.tokens);
  const std::int64_t input_bytes = StepInput::bytes(spec, plan.tokens);
  for (PinnedMemory& staging : staging_) staging = PinnedMemory(input_bytes);
  staging_used_ = {};
  if (!shape().base_table()) {
    step_.embedding = fixed_.weights.head;  // unless the adapter has its own
  } else if (plan.choice.embedding_on_device) {
    host_embedding_ = {};
    upload_table(base_.weights.embedding, step_.embedding, false, stream_);
  } else {
    if (host_embedding_.bytes() == 0) {
      host_embedding_ = PinnedMemory(spec.vocab * spec.hidden * static_cast<std::int64_t>(sizeof(bf16)));
      upload_table(base_.weights.embedding, host_embedding_.as<bf16>(), true, stream_);
    }
    step_.embedding = host_embedding_.as<bf16>();
  }
  stage_ = std::make_unique<WeightStage>(spec, geometry_, fixed_.weights, adapter_, fixed_.values, step_.stage, stream_);
  copies_ = std::make_unique<InputCopies>(plan.choice.offloaded, plan.tokens, spec.hidden);
  rotations_.assign(spec.ropes.size(), {});
  plan_ = plan;
}

void Replica::reserve(std::int64_t tokens) {
  if (tokens <= plan_.tokens) return;
  use_device(device_);
  const MemoryPlan larger = plan_memory(shape(), token_bucket(tokens), plan_.budget);
  abandon();
  const MemoryPlan before = plan_;
  step_memory_ = {};
  try {
    take_step_memory(larger);
  } catch (const Error&) {
    step_memory_ = {};
    take_step_memory(before);  // which fitted a moment ago
    throw;
  }
}

void Replica::begin(Clear clear) {
  use_device(device_);
  if (clear == Clear::loss_and_gradients) fill_bytes(fixed_.gradients, 0, adapter_.size() * 4, stream_);
  fill_bytes(fixed_.scalars, 0, sizeof(StepScalars), stream_);
}

View<bf16> Replica::x(const DevicePass& pass, std::int64_t layer) const { return pass.rows(step_.x[static_cast<std::size_t>(layer)], base_.spec.hidden); }

void Replica::mark(double PhaseTimes::* phase) {
  if (marked_ == marks_.size()) marks_.push_back({std::make_unique<Event>(Event::Timing::on), nullptr});
  marks_[marked_].phase = phase;
  marks_[marked_].event->record(stream_);
  ++marked_;
}

void Replica::pace(const CancelFlag* cancel) {
  check_cancelled(cancel);
  Event& event = paces_[paced_ % kLayersAhead];
  if (paced_ >= kLayersAhead) event.synchronize();
  event.record(stream_);
  ++paced_;
}

StepInput Replica::stage_input(const LabelledBatch& batch, float weight, const Noise& noise) {
  const ModelSpec& spec = base_.spec;
  const auto given = static_cast<std::size_t>(batch.tokens()), tokens = static_cast<std::size_t>(filled(batch.tokens()));
  const std::size_t slot = next_staging_++ % staging_.size();
  if (staging_used_[slot]) staged_[slot].synchronize();
  DeviceArena host_arena(staging_[slot].data(), staging_[slot].bytes());
  const StepInput host = StepInput::take(host_arena, spec, step_.tokens);

  std::ranges::copy(batch.ids, host.ids);
  std::fill(host.ids + given, host.ids + tokens, 0);
  std::vector<std::int64_t> offsets = batch.offsets;
  if (tokens > given) offsets.push_back(static_cast<std::int64_t>(tokens));
  std::vector<std::int32_t> positions(tokens), lengths(tokens);
  for (std::size_t row = 0; row + 1 < offsets.size(); ++row) {
    const std::int64_t first = offsets[row], length = offsets[row + 1] - first;
    const float alpha = static_cast<std::size_t>(first) < given ? noise.neftune_alpha : 0.0f;
    const float magnitude = alpha / std::sqrt(static_cast<float>(length * spec.hidden));
    for (std::int64_t i = 0; i < length; ++i) {
      positions[static_cast<std::size_t>(first + i)] = static_cast<std::int32_t>(i);
      lengths[static_cast<std::size_t>(first + i)] = static_cast<std::int32_t>(length);
      host.noise[first + i] = magnitude;
    }
  }
  ropes_.prepare(positions, lengths);
  for (std::size_t r = 0; r < spec.ropes.size(); ++r) {
    const Rotation rotation = ropes_.at(static_cast<int>(r));
    std::copy_n(rotation.positions, tokens, host.positions[r]);
    // A table grows with the longest row, or (dynamic scaling) is made anew for every micro-batch.
    const bool made_anew = rotation.positions != positions.data();
    const std::int64_t rows = std::min(rotation.table->count, step_.tokens), half = rotation.table->rotary_dim / 2;
    if (made_anew || rotations_[r].table != rotation.table->cos.data() || rotations_[r].rows != rows) {
      copy_to_device(step_.cos[r], rotation.table->cos.data(), rows * half * 4, stream_);
      copy_to_device(step_.sin[r], rotation.table->sin.data(), rows * half * 4, stream_);
      stream_.synchronize();  // the host's tables may change with the next micro-batch
      rotations_[r] = {made_anew ? nullptr : rotation.table->cos.data(), rows};
    }
  }
  const std::vector<AttentionTile> tiles = attention_tiles(offsets);
  copy_in(host.tiles, tiles);
  std::ranges::transform(batch.positions, host.label_rows, [](std::int64_t row) { return static_cast<std::int32_t>(row); });
  copy_in(host.targets, batch.targets);
  std::fill_n(host.weights, batch.labels(), weight);
  const std::int64_t labels = filled(batch.labels());
  std::fill(host.label_rows + batch.labels(), host.label_rows + labels, -1);
  std::fill(host.targets + batch.labels(), host.targets + labels, 0);
  std::fill(host.weights + batch.labels(), host.weights + labels, 0.0f);
  host.seeds[0] = noise.keys.dropout;
  host.seeds[1] = noise.keys.neftune;

  copy_to_device(step_.input, staging_[slot].data(), staging_[slot].bytes(), stream_);
  staged_[slot].record(stream_);
  staging_used_[slot] = true;
  DeviceArena device_arena(step_.input, staging_[slot].bytes());
  StepInput input = StepInput::take(device_arena, spec, step_.tokens);
  input.tokens = static_cast<std::int64_t>(tokens);
  input.tile_count = static_cast<std::int64_t>(tiles.size());
  input.labels = labels;
  return input;
}

DevicePass Replica::make_pass(const StepInput& input, float dropout) {
  DevicePass pass{.spec = base_.spec,
                  .geometry = geometry_,
                  .weights = fixed_.weights,
                  .stage = *stage_,
                  .gemm = gemm_,
                  .stream = stream_,
                  .beside = beside_,
                  .work = step_.work,
                  .adapter = adapter_,
                  .values = fixed_.values,
                  .inverse_norms = fixed_.inverse_norms,
                  .gradients = fixed_.gradients,
                  .tokens = input.tokens,
                  .tiles = {input.tiles, input.tile_count},
                  .rotations = {},
                  .dropout = dropout,
                  .dropout_seed = input.seeds,
                  .lowest = lowest_};
  for (std::size_t r = 0; r < base_.spec.ropes.size(); ++r)
    pass.rotations.push_back({step_.cos[r], step_.sin[r], base_.spec.ropes[r].rotary_dim, input.positions[r]});
  return pass;
}

void Replica::forward(const DevicePass& pass, const StepInput& input, float neftune_alpha, bool for_backward, const CancelFlag* cancel) {
  const ModelSpec& spec = base_.spec;
  const std::int64_t input_bytes = pass.tokens * spec.hidden * static_cast<std::int64_t>(sizeof(bf16));
  const float scale = embedding_scale(spec, Compute::bf16);
  if (const std::int64_t own = adapter_.embedding_offset(); own >= 0)
    embed_forward(View<const float>(fixed_.values + own, spec.vocab, spec.hidden), input.ids, scale, x(pass, 0), stream_);  // [T, hidden]
  else
    embed_forward(View<const bf16>(step_.embedding, spec.vocab, spec.hidden), input.ids, scale, x(pass, 0), stream_);
  if (neftune_alpha > 0) add_neftune_noise(input.seeds + 1, input.noise, x(pass, 0), stream_);
  View<bf16> delta;
  for (std::int64_t layer = 0; layer < spec.layers; ++layer) {
    pace(cancel);
    const LayerBuffers& a = step_.layers[static_cast<std::size_t>(layer)];
    attention_forward_half(pass, layer, x(pass, layer), delta, a);
    if (for_backward && layer >= lowest_) copies_->leave(layer - lowest_, step_.x[static_cast<std::size_t>(layer)], input_bytes, stream_);
    if (for_backward && layer + 1 >= lowest_) copies_->before_writing(layer + 1 - lowest_, stream_);
    mlp_forward_half(pass, layer, x(pass, layer), a, x(pass, layer + 1));                                // [T, hidden]
    delta = pass.rows(a.middle, spec.hidden);
  }
  add_scaled(delta, 1.0f, x(pass, spec.layers), stream_);
}

void Replica::loss(const DevicePass& pass, const StepInput& input, bool gradient, float* losses) {
  const ModelSpec& spec = base_.spec;
  const WorkBuffers& work = step_.work;
  const RmsNorm norm{fixed_.weights.final_norm, spec.norm_eps, spec.norm_offset};
  const View<const bf16> head{fixed_.weights.head, spec.vocab, spec.hidden};
  const View<bf16> dx = pass.rows(step_.dx, spec.hidden, spec.hidden + geometry_.tail(Group::o, Group::down));
  if (gradient) fill(dx, 0.0f, stream_);
  for (std::int64_t first = 0; first < input.labels; first += work.loss_rows) {
    const std::int64_t count = std::min(work.loss_rows, input.labels - first);
    const View<bf16> gathered{work.gathered, count, spec.hidden}, head_in{work.head_in, count, spec.hidden}, logits{work.logits, count, spec.vocab, logit_stride(spec)};
    gather_rows(x(pass, spec.layers), input.label_rows + first, gathered, stream_);                      // [n, hidden]
    rmsnorm_forward(norm, gathered, {}, head_in, work.head_rstd, stream_);
    gemm_(GemmForm::nt, head_in, head, logits, stream_);                                                 // [n, vocab]
    cross_entropy(logits, input.targets + first, input.weights + first, spec.logit_softcap, gradient ? LogitGradient::in_place : LogitGradient::none, work.losses,
                  stream_);
    add_losses(work.losses, input.weights + first, count, &fixed_.scalars->loss, nullptr, stream_);
    if (losses != nullptr) copy_to_host(losses + first, work.losses, count * 4, stream_);
    if (!gradient) continue;
    if (adapter_.head_offset() >= 0)
      gemm_(GemmForm::tn, logits, head_in, View<float>(fixed_.gradients + adapter_.head_offset(), spec.vocab, spec.hidden), stream_, 1.0f, 1.0f);  // [vocab, hidden]
    gemm_(GemmForm::nn, logits, head, head_in, stream_);                                                 // [n, hidden]
    rmsnorm_backward(norm, gathered, work.head_rstd, head_in, head_in, false, stream_);
    scatter_rows(head_in, input.label_rows + first, dx, stream_);
  }
}

void Replica::backward(const DevicePass& pass, const StepInput& input, const CancelFlag* cancel) {
  const ModelSpec& spec = base_.spec;
  const std::int64_t input_bytes = pass.tokens * spec.hidden * static_cast<std::int64_t>(sizeof(bf16)), tail = geometry_.tail(Group::o, Group::down);
  const View<bf16> dx = pass.rows(step_.dx, spec.hidden + tail);
  const std::int64_t table = adapter_.embedding_offset();
  for (std::int64_t layer = spec.layers - 1; layer >= lowest_; --layer) {
    pace(cancel);
    copies_->before_backward(layer - lowest_, stream_);
    const LayerBuffers& a = step_.layers[static_cast<std::size_t>(layer)];
    const Keep keep = plan_.choice.keep(layer, shape());
    if (keep == Keep::input || keep == Keep::host) {
      attention_forward_half(pass, layer, x(pass, layer), {}, a);
      mlp_forward_half(pass, layer, x(pass, layer), a, {});
    } else if (keep == Keep::part) {
      mlp_forward_half(pass, layer, {}, a, {});
    }
    layer_backward(pass, layer, x(pass, layer), a, dx, layer == lowest_ && table < 0 ? InputGradient::unused : InputGradient::wanted);
    copies_->after_backward(layer - lowest_, step_.x[static_cast<std::size_t>(layer)], input_bytes, stream_);
  }
  if (table >= 0)
    embed_backward(input.ids, dx.columns(0, spec.hidden), embedding_scale(spec, Compute::bf16), View<float>(fixed_.gradients + table, spec.vocab, spec.hidden), stream_);
}

void Replica::micro_step(const LabelledBatch& batch, float weight, const Noise& noise, const CancelFlag* cancel) {
  use_device(device_);
  const StepInput input = stage_input(batch, weight, noise);
  DevicePass pass = make_pass(input, noise.dropout);
  pass.decode_ahead = true;
  mark(nullptr);
  forward(pass, input, noise.neftune_alpha, true, cancel);
  mark(&PhaseTimes::forward);
  pass.decode_ahead = false;
  loss(pass, input, true);
  mark(&PhaseTimes::loss);
  pass.lows_kept = true;
  backward(pass, input, cancel);
  mark(&PhaseTimes::backward);
}

void Replica::evaluate(const LabelledBatch& batch, float weight, const CancelFlag* cancel) {
  use_device(device_);
  const StepInput input = stage_input(batch, weight, {});
  DevicePass pass = make_pass(input, 0);
  pass.decode_ahead = true;
  forward(pass, input, 0, false, cancel);
  loss(pass, input, false);
}

std::vector<float> Replica::score(const LabelledBatch& batch, const CancelFlag* cancel) {
  begin(Clear::loss);
  const StepInput input = stage_input(batch, 1.0f, {});
  DevicePass pass = make_pass(input, 0);
  pass.decode_ahead = true;
  forward(pass, input, 0, false, cancel);
  std::vector<float> scores(static_cast<std::size_t>(input.labels));
  loss(pass, input, false, scores.data());
  finish();
  scores.resize(static_cast<std::size_t>(batch.labels()));
  for (float& score : scores) score = -score;
  return scores;
}

void Replica::update(const OptimizerOptions& options, double learning_rate, double max_grad_norm, std::int64_t number) {
  use_device(device_);
  StepScalars* scalars = fixed_.scalars;
  mark(nullptr);
  sum_of_squares(fixed_.gradients, adapter_.size(), &scalars->sum_of_squares, fixed_.sum_workspace, stream_);
  clip_scale(&scalars->sum_of_squares, static_cast<float>(max_grad_norm), &scalars->clip_scale, &scalars->gradient_norm, stream_);
  auto* constants = constants_.as<AdamWConstants>();
  for (std::size_t r = 0; r < runs_.size(); ++r) constants[r] = adamw_constants(adamw_of(options, runs_[r], learning_rate, number, 1.0f));
  copy_to_device(fixed_.constants, constants, constants_.bytes(), stream_);
  for (std::size_t r = 0; r < runs_.size(); ++r) {
    const OptimizerRun& run = runs_[r];
    const OptimizerMemory& state = fixed_.optimizer[r];
    float* p = fixed_.values + run.offset;
    const float* g = fixed_.gradients + run.offset;
    if (run.eight_bit)
      adamw_8bit(fixed_.constants + r, &scalars->clip_scale, p, g, state.m_codes, state.v_codes, state.m_absmax, state.v_absmax, run.size, stream_);
    else
      adamw_f32(fixed_.constants + r, &scalars->clip_scale, p, g, state.m, state.v, run.size, stream_);
  }
  values_changed();
  mark(&PhaseTimes::update);
}

StepScalars Replica::finish() {
  use_device(device_);
  copy_to_host(results_.data(), fixed_.scalars, sizeof(StepScalars), stream_);
  stream_.synchronize();
  paced_ = 0;
  phases_ = {};
  for (std::size_t i = 1; i < marked_; ++i)
    if (marks_[i].phase != nullptr) phases_.*marks_[i].phase += marks_[i].event->milliseconds_since(*marks_[i - 1].event);
  marked_ = 0;
  return *results_.as<StepScalars>();
}

void Replica::read_values(float* to) {
  use_device(device_);
  copy_to_host(to, fixed_.values, adapter_.size() * 4, stream_);
  stream_.synchronize();
}

void Replica::write_values(const float* from) {
  use_device(device_);
  copy_to_device(fixed_.values, from, adapter_.size() * 4, stream_);
  values_changed();
  stream_.synchronize();
}

// What is computed with besides the values themselves follows them.
void Replica::values_changed() {
  const ModelSpec& spec = base_.spec;
  if (const std::int64_t head = adapter_.head_offset(); head >= 0)
    narrow_rows(View<const float>(fixed_.values + head, spec.vocab, spec.hidden), View<bf16>(fixed_.weights.head, spec.vocab, spec.hidden), stream_);
  follow_norms(geometry_, fixed_.weights, adapter_, fixed_.values, fixed_.inverse_norms, stream_);
  stage_->adapter_changed();
}

void Replica::begin_magnitudes() {
  use_device(device_);
  cuda::begin_magnitudes(geometry_, adapter_, fixed_.values, fixed_.inverse_norms, stream_);
  stream_.synchronize();
}

void Replica::read_gradients(float* to) {
  use_device(device_);
  copy_to_host(to, fixed_.gradients, adapter_.size() * 4, stream_);
  stream_.synchronize();
}

namespace {

// The tensors of a run's state, in the order of optimizer_state_specs.
std::vector<void*> state_tensors(const OptimizerMemory& state) {
  if (state.m != nullptr) return {state.m, state.v};
  return {state.m_codes, state.v_codes, state.m_absmax, state.v_absmax};
}

}  // namespace

std::vector<std::vector<std::uint8_t>> Replica::read_state(std::size_t run) {
  use_device(device_);
  std::vector<std::vector<std::uint8_t>> tensors;
  const std::vector<TensorSpec> specs = optimizer_state_specs(runs_[run]);
  const std::vector<void*> from = state_tensors(fixed_.optimizer[run]);
  for (std::size_t t = 0; t < specs.size(); ++t) {
    std::vector<std::uint8_t>& bytes = tensors.emplace_back(static_cast<std::size_t>(specs[t].shape[0] * dtype_size(specs[t].dtype)));
    copy_to_host(bytes.data(), from[t], static_cast<std::int64_t>(bytes.size()), stream_);
  }
  stream_.synchronize();
  return tensors;
}

void Replica::write_state(std::size_t run, std::size_t tensor, const void* from) {
  use_device(device_);
  const TensorSpec spec = optimizer_state_specs(runs_[run])[tensor];
  copy_to_device(state_tensors(fixed_.optimizer[run])[tensor], from, spec.shape[0] * dtype_size(spec.dtype), stream_);
  stream_.synchronize();
}

}  // namespace engine::cuda
