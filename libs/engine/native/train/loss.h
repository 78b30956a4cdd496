// loss.h: final norm, head and cross-entropy over the labelled positions only, in chunks, so that no [T, vocab] buffer exists.
//   loss = weight · Σ over labels of −log softmax(cap(norm(x)·headᵀ))[target]
#pragma once

#include <cstdint>

#include "model/backward.h"
#include "train/batch.h"

namespace engine {

// How many labelled positions of a batch are computed at a time; a chunk's logits are [rows, vocab].
std::int64_t loss_chunk_rows(const ModelSpec& spec, std::int64_t labels);

// hidden [T, hidden]: before the final norm. Returns the weighted loss, summed in fp64.
double head_loss(const Pass& pass, ConstRows hidden, const LabelledBatch& batch, float weight);

// The same, and its gradient: dhidden [T, hidden] is overwritten; in full-parameter mode the head's and the norm's go to `gradients`.
double head_loss_backward(const Pass& pass, ConstRows hidden, const LabelledBatch& batch, float weight, Rows dhidden, const Gradients& gradients);

}  // namespace engine
