// torch_sum.h: a float sum in the order torch adds a contiguous tensor on one x86 thread.
//   bitsandbytes stores mean(absmax) to the last bit in a checkpoint, so equal files need equal rounding. Eight lanes, four vectors of them in
//   flight, and a cascade of four levels. Exact against torch 2.13 for every length tried (1 to 32,768); above that torch itself splits the sum
//   by its number of threads, and no single order is right.
#pragma once

#include <cstdint>

namespace engine {

float torch_sum(const float* values, std::int64_t n);

}  // namespace engine
