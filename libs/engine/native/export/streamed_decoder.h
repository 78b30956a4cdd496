// streamed_decoder.h: the logits of one short sequence with the weights of one layer in memory at a time, wherever they come from.
//   All in fp32: what differs between two sources of weights is the weights.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/cancel.h"
#include "core/exec.h"
#include "model/spec.h"

namespace engine {

// Rows [first, first + count) of a parameter as fp32, dense; a vector is one row.
using ReadRows = std::function<void(const ParameterSpec& parameter, std::int64_t first, std::int64_t count, float* out)>;

// [T, vocab] row by row. Throws invalid for an id outside the vocabulary, cancelled, and what `read` throws.
std::vector<float> streamed_logits(const Exec& ex, const ModelSpec& spec, const ReadRows& read, std::span<const std::uint32_t> ids,
                                   const CancelFlag* cancel = nullptr);

}  // namespace engine
