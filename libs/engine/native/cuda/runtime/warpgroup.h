// warpgroup.h: products of four neighbouring warps, whose operands lie in shared memory and whose sums arrive in the background (wgmma, sm_90a).
//   Each instruction has its device form and its emulated definition (emulation/warpgroup.cpp). All threads of the group take part in each.
//   A kernel that uses them has a body only where ENGINE_WARPGROUP_PRODUCTS is defined, and is started only where has_warpgroup_products() of stream.h says so.
//
//   D [64, N] += A [64, 16] · B [16, N], bf16 or fp16 operands, fp32 sums (PTX ISA, "Asynchronous wgmma.m64nNk16"). Warp w of the group owns rows 16·w … + 15
//   of D as neighbouring m16n8 C fragments of ptx.h, and of A, when A is in registers, as its A fragment.
//
//   An operand in shared memory is rows of 128 bytes (64 values), whose eight 16-byte chunks are permuted by the row: chunk c of row r is at c ^ (r % 8).
//   Eight rows are a 1,024-byte block, aligned to its size. A matrix descriptor gives the first block's address and the distances of others:
//     sums run along a row (A, and B as [N, K]):      `stride` bytes from eight rows to the next eight; 16 values further are 32 bytes further
//     sums run across rows (B as [K, N], transposed): `stride` bytes from eight rows to the next eight, `leading` bytes from 64 columns to the next 64
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/runtime/ptx.h"

#if defined(ENGINE_CUDA_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ENGINE_WARPGROUP_PRODUCTS 1
#endif

namespace engine::cuda {

inline constexpr int kWarpgroup = 128;  // threads

#ifdef ENGINE_CUDA_EMULATED
namespace emulation {
// What one lane gives to a product; the same for all lanes but for d and a.
struct GroupProduct {
  float* d;  // [n / 8][4]
  std::uint32_t a[4];
  std::uint64_t a_matrix, b_matrix;
  std::uint16_t n;
  bool a_in_registers, b_transposed, add;
  bool fp16 = false;  // the operands; else bf16
};
void start_product(const GroupProduct& product);
void fence_products();
void commit_products();
void wait_products(int groups_left);
std::uint64_t shared_address(const void* address);
// Shared memory that this thread has written is from here on visible to products.
void fence_proxy();
}  // namespace emulation
#endif

// The descriptor of a matrix at `start` in shared memory.
ENGINE_DEVICE std::uint64_t matrix_descriptor(const void* start, int leading, int stride) {
#ifdef ENGINE_CUDA_EMULATED
  const std::uint64_t address = emulation::shared_address(start);
#else
  const std::uint64_t address = __cvta_generic_to_shared(start);
#endif
  return (address & 0x3ffff) >> 4 | std::uint64_t(leading >> 4) << 16 | std::uint64_t(stride >> 4) << 32 | std::uint64_t{1} << 62;
}
// The same matrix `bytes` further.
ENGINE_DEVICE std::uint64_t further(std::uint64_t descriptor, int bytes) { return descriptor + static_cast<std::uint64_t>(bytes >> 4); }

// What threads have written to shared memory (copy_async16 too, once waited for) becomes visible to products. Each writer calls it before the barrier.
ENGINE_DEVICE void fence_shared_for_products() {
#ifdef ENGINE_CUDA_EMULATED
  emulation::fence_proxy();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- counting barriers (mbarrier): 8 bytes of shared memory. A phase is over when `arrivals` threads have arrived; then the next begins.

// By one thread; a barrier of the block precedes the first use.
ENGINE_DEVICE void prepare_counter(std::uint64_t* counter, unsigned arrivals) {
#ifdef ENGINE_CUDA_EMULATED
  emulation::prepare_counter(counter, arrivals);
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(counter))), "r"(arrivals) : "memory");
#endif
}
// What this thread has written is seen by whoever has waited for the phase.
ENGINE_DEVICE void arrive(std::uint64_t* counter) {
#ifdef ENGINE_CUDA_EMULATED
  emulation::arrive_at_counter(counter);
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(counter))) : "memory");
#endif
}
// Until phase number `parity` modulo 2 is over, counted from 0. Of a barrier at its first phase, the one before, 1, is over.
ENGINE_DEVICE void wait_for_phase(std::uint64_t* counter, unsigned parity) {
#ifdef ENGINE_CUDA_EMULATED
  emulation::wait_at_counter(counter, parity);
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  asm volatile("{ .reg .pred p;\nagain: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra over;\nbra again;\nover: }" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(counter))),
               "r"(parity)
               : "memory");
#endif
}
// By one thread, which arrives at the counter; the phase does not end before `bytes`, a multiple of 16, of global memory lie in shared memory, where products
// see them. Both addresses are aligned to 16.
ENGINE_DEVICE void arrive_with_copy(std::uint64_t* counter, void* to, const void* from, std::uint32_t bytes) {
#ifdef ENGINE_CUDA_EMULATED
  std::memcpy(to, from, bytes);
  emulation::arrive_at_counter(counter);
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  const std::uint32_t at = static_cast<std::uint32_t>(__cvta_generic_to_shared(counter));
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(to))), "l"(from),
               "r"(bytes), "r"(at)
               : "memory");
#endif
}

// ---- products

// Before the first product, and before one that reads registers which other instructions have changed since the last.
ENGINE_DEVICE void fence_products() {
#ifdef ENGINE_CUDA_EMULATED
  emulation::fence_products();
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Ends a group of products.
ENGINE_DEVICE void commit_products() {
#ifdef ENGINE_CUDA_EMULATED
  emulation::commit_products();
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Registers that products in the background write or read: the compiler must not use them across this point from before.
template <class T, int M, int N>
ENGINE_DEVICE void settle(T (&registers)[M][N]) {
#ifndef ENGINE_CUDA_EMULATED
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if constexpr (std::is_floating_point_v<T>)
        asm volatile("" : "+f"(registers[m][n])::"memory");
      else
        asm volatile("" : "+r"(registers[m][n])::"memory");
    }
#endif
}

// Until at most `kLeft` groups of products are under way; the results of the others, named here, may be used then.
template <int kLeft, class... Registers>
ENGINE_DEVICE void wait_products(Registers&... finished) {
#ifdef ENGINE_CUDA_EMULATED
  emulation::wait_products(kLeft);
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
  (settle(finished), ...);
}

#if !defined(ENGINE_CUDA_EMULATED) && defined(ENGINE_WARPGROUP_PRODUCTS)
#define ENGINE_D4(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define ENGINE_D32 ENGINE_D4(0), ENGINE_D4(1), ENGINE_D4(2), ENGINE_D4(3), ENGINE_D4(4), ENGINE_D4(5), ENGINE_D4(6), ENGINE_D4(7)
#define ENGINE_D64 \
  ENGINE_D32, ENGINE_D4(8), ENGINE_D4(9), ENGINE_D4(10), ENGINE_D4(11), ENGINE_D4(12), ENGINE_D4(13), ENGINE_D4(14), ENGINE_D4(15)
#define ENGINE_D32_NAMES                                                                                                                 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, " \
  "%28, %29, %30, %31"
#define ENGINE_D64_NAMES                                                                                                                     \
  ENGINE_D32_NAMES                                                                                                                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
  "%59, %60, %61, %62, %63"
#endif

// d = A·B, or d += A·B when `add`; A [64, 16] in shared memory, sums along its rows.
template <bool kTransposedB, int F>
ENGINE_DEVICE void multiply_group(float (&d)[F][4], std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(F == 8 || F == 16, "a product is 64 or 128 columns wide");
#ifdef ENGINE_CUDA_EMULATED
  emulation::start_product({&d[0][0], {}, a, b, 8 * F, false, kTransposedB, add});
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  if constexpr (F == 8)
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" ENGINE_D32_NAMES "}, %32, %33, p, 1, 1, 0, %35; }"
                 : ENGINE_D32
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kTransposedB)));
  else
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" ENGINE_D64_NAMES "}, %64, %65, p, 1, 1, 0, %67; }"
                 : ENGINE_D64
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kTransposedB)));
#endif
}

// The same with each warp's 16 rows of A in its registers.
template <bool kTransposedB, int F>
ENGINE_DEVICE void multiply_group(float (&d)[F][4], const std::uint32_t (&a)[4], std::uint64_t b, bool add) {
  static_assert(F == 8 || F == 16, "a product is 64 or 128 columns wide");
#ifdef ENGINE_CUDA_EMULATED
  emulation::start_product({&d[0][0], {a[0], a[1], a[2], a[3]}, 0, b, 8 * F, true, kTransposedB, add});
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  if constexpr (F == 8)
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" ENGINE_D32_NAMES "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38; }"
                 : ENGINE_D32
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kTransposedB)));
  else
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" ENGINE_D64_NAMES "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70; }"
                 : ENGINE_D64
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kTransposedB)));
#endif
}

// d += A·B of fp16 operands, each warp's 16 rows of A in its registers, B [N, 16] of 8, 16, 32 or 64 columns; sums run along its rows.
template <int F>
ENGINE_DEVICE void multiply_group_f16(float (&d)[F][4], const std::uint32_t (&a)[4], std::uint64_t b) {
  static_assert(F == 1 || F == 2 || F == 4 || F == 8, "a product is 8, 16, 32 or 64 columns wide");
#ifdef ENGINE_CUDA_EMULATED
  emulation::start_product({&d[0][0], {a[0], a[1], a[2], a[3]}, 0, b, 8 * F, true, false, true, true});
#elif defined(ENGINE_WARPGROUP_PRODUCTS)
  if constexpr (F == 1)
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, 1, 1, 1, 0;"
                 : ENGINE_D4(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  else if constexpr (F == 2)
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, 1, 1, 1, 0;"
                 : ENGINE_D4(0), ENGINE_D4(1)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  else if constexpr (F == 4)
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "{%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
                 : ENGINE_D4(0), ENGINE_D4(1), ENGINE_D4(2), ENGINE_D4(3)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" ENGINE_D32_NAMES "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 0;"
                 : ENGINE_D32
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#endif
}

#undef ENGINE_D4
#undef ENGINE_D32
#undef ENGINE_D64
#undef ENGINE_D32_NAMES
#undef ENGINE_D64_NAMES

}  // namespace engine::cuda
