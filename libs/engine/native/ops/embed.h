// embed.h: rows of the token table.   out[t] = scale · table[ids[t]]
//   scale is 1, or √hidden rounded to bf16 for Gemma.
#pragma once

#include <cstdint>
#include <span>

#include "core/exec.h"
#include "ops/matrix.h"

namespace engine {

// table [V,H] of any weight type, out [T,H]. Throws invalid when an id is not below V.
void embed_forward(const Exec& ex, const Matrix& table, std::span<const std::uint32_t> ids, float scale, Rows out);

// dtable[ids[t]] += scale · dout[t], dtable fp32 [V,H]. Repeated ids are added in the order of t, whatever the threads.
void embed_backward(const Exec& ex, std::span<const std::uint32_t> ids, ConstRows dout, float scale, Rows dtable);

}  // namespace engine
