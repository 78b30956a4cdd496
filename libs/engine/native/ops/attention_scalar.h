// attention_scalar.h: the definition of attention.h, one query at a time. Used when no vector instructions are, and by tests.
#pragma once

#include "ops/attention.h"

namespace engine {

void attention_forward_scalar(const Exec& ex, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                              std::span<const std::int64_t> offsets, Rows out, float* lse);
void attention_backward_scalar(const Exec& ex, const AttentionShape& shape, ConstRows q, ConstRows k, ConstRows v,
                               std::span<const std::int64_t> offsets, ConstRows out, const float* lse, ConstRows dout, Rows dq, Rows dk, Rows dv);

}  // namespace engine
