// exec.h: how an operation is to be computed: on which threads, with which instructions, in which precision.
#pragma once

#include <cstdint>

#include "core/cpu_info.h"
#include "core/thread_pool.h"

namespace engine {

// What the operands of matrix products are rounded to. Sums, norms, softmax, losses and the optimizer are fp32 (or wider) in both.
//   bf16  operands rounded to nearest even, products summed in fp32     f32  nothing is rounded
enum class Compute : std::uint8_t { f32, bf16 };

// In which order linear (ops/linear.h) sums.
//   fastest  whatever suits the number of rows     same_for_any_rows  one order, so that a row's bits do not depend on the rows beside it
enum class SumOrder : std::uint8_t { fastest, same_for_any_rows };

// Passed by reference to every operation. Borrows the pool; one thread at a time may run operations on it.
struct Exec {
  ThreadPool& pool;
  Isa isa;
  Compute compute;
  SumOrder order = SumOrder::fastest;
};

// An Exec with the best instructions this process may use (usable_isa reads MEDMESH_ENGINE_ISA here, once).
inline Exec make_exec(ThreadPool& pool, Compute compute) { return Exec{pool, usable_isa(), compute}; }

}  // namespace engine
