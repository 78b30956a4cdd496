#include "train/loss.h"

#include <algorithm>
#include <cstring>

#include "ops/cross_entropy.h"
#include "ops/gemm.h"
#include "ops/linear.h"
#include "ops/rmsnorm.h"

namespace engine {
namespace {

// A chunk's logits take at most 256 MiB unless that were fewer rows than make good use of one pass over the head: every chunk reads and packs it
// twice, which costs as much as the products of 100 rows where those have tiles.
constexpr std::int64_t kChunkElements = std::int64_t{1} << 26;
constexpr std::int64_t kFewestRows = 64, kMostRows = 1024;

double chunked_loss(const Pass& pass, ConstRows hidden, const LabelledBatch& batch, float weight, Rows dhidden, const Gradients* gradients) {
  const Arena::Scope scope(pass.arena);
  const ModelSpec& spec = pass.spec;
  const RmsNorm norm{pass.weights.final_norm, spec.hidden, spec.norm_eps, spec.norm_offset};
  const std::int64_t width = spec.hidden, labels = batch.labels();
  if (gradients != nullptr) std::memset(dhidden.data, 0, static_cast<std::size_t>(dhidden.rows * width) * sizeof(float));
  if (labels == 0) return 0;

  const std::int64_t chunk = loss_chunk_rows(spec, labels);
  float* weights = pass.arena.take<float>(chunk);
  std::fill_n(weights, chunk, weight);
  const Rows gathered = pass.arena.rows(chunk, width), normed = pass.arena.rows(chunk, width), logits = pass.arena.rows(chunk, spec.vocab);
  float* rstd = pass.arena.take<float>(chunk);
  const Matrix head = head_of(pass, pass.adapters.empty() ? nullptr : pass.adapters.front().adapter);
  double loss = 0;
  for (std::int64_t first = 0; first < labels; first += chunk) {
    check_cancelled(pass.cancel);
    const std::int64_t count = std::min(chunk, labels - first);
    const auto part = [count](Rows x) { return Rows(x.data, count, x.cols); };
    const std::int64_t* positions = batch.positions.data() + first;
    for (std::int64_t i = 0; i < count; ++i) std::memcpy(gathered.row(i), hidden.row(positions[i]), static_cast<std::size_t>(width) * sizeof(float));
    rmsnorm_forward(pass.ex, norm, part(gathered), part(normed), rstd);                                  // [n, hidden]
    linear(pass.ex, part(normed), head, nullptr, part(logits));                             // [n, vocab]
    const std::span targets(batch.targets.data() + first, static_cast<std::size_t>(count));
    const LogitGradient wanted = gradients != nullptr ? LogitGradient::in_place : LogitGradient::none;
    loss += cross_entropy(pass.ex, part(logits), targets, {weights, static_cast<std::size_t>(count)}, spec.logit_softcap, wanted, nullptr);
    if (gradients == nullptr) continue;
    if (gradients->head != nullptr)
      gemm_tn(pass.ex, part(logits), part(normed), Rows(gradients->head, spec.vocab, width), 1.0f, true);  // [vocab, hidden]
    linear_backward_input(pass.ex, part(logits), head, part(normed));                       // [n, hidden]
    if (gradients->full != nullptr) rmsnorm_backward_weight(pass.ex, norm, part(gathered), rstd, part(normed), gradients->of(norm.weight));
    rmsnorm_backward(pass.ex, norm, part(gathered), rstd, part(normed), part(normed));                   // [n, hidden]
    for (std::int64_t i = 0; i < count; ++i) std::memcpy(dhidden.row(positions[i]), normed.row(i), static_cast<std::size_t>(width) * sizeof(float));
  }
  return loss;
}

}  // namespace

std::int64_t loss_chunk_rows(const ModelSpec& spec, std::int64_t labels) {
  const std::int64_t most = std::clamp(kChunkElements / spec.vocab, kFewestRows, kMostRows), chunks = (labels + most - 1) / most;
  return chunks == 0 ? 0 : (labels + chunks - 1) / chunks;  // of one size, as far as that goes
}

double head_loss(const Pass& pass, ConstRows hidden, const LabelledBatch& batch, float weight) {
  return chunked_loss(pass, hidden, batch, weight, {}, nullptr);
}

double head_loss_backward(const Pass& pass, ConstRows hidden, const LabelledBatch& batch, float weight, Rows dhidden, const Gradients& gradients) {
  return chunked_loss(pass, hidden, batch, weight, dhidden, &gradients);
}

}  // namespace engine
