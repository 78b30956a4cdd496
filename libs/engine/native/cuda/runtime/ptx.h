// ptx.h: the instructions that kernels are written in: shuffles, 16-byte and asynchronous copies, ldmatrix, mma.sync.
//   Each has its device form and its emulated definition side by side. All lanes of a warp take part in what is marked (warp).
//
//   mma m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"); lane = 4·g + t:
//     A [16,16]  a0 = (g, 2t..2t+1)  a1 = (g+8, 2t..)  a2 = (g, 2t+8..)  a3 = (g+8, 2t+8..)      two bf16 in each, the first in the low half
//     B [16,8]   b0 = (2t..2t+1, g)  b1 = (2t+8.., g)
//     C [16,8]   c0, c1 = (g, 2t..2t+1)  c2, c3 = (g+8, 2t..)
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/bf16.h"
#include "cuda/runtime/cuda.h"

#ifdef ENGINE_CUDA_EMULATED
#define ENGINE_DEVICE inline
// Shared memory of a fixed size; `name` is a pointer to `count` values, poisoned at the start of a block.
#define SHARED_ARRAY(type, name, count)  \
  static const char name##_site = 0;     \
  type* const name = static_cast<type*>( \
      ::engine::cuda::emulation::static_shared(&name##_site, sizeof(type) * (count)))
#else
#define ENGINE_DEVICE __device__ __forceinline__
#define SHARED_ARRAY(type, name, count) __shared__ __align__(16) type name[count]
#endif

namespace engine::cuda {

inline constexpr int kWarp = 32;

// ---- numbers

ENGINE_DEVICE float widen(std::uint32_t low_half) {
#ifdef ENGINE_CUDA_EMULATED
  return std::bit_cast<float>(low_half << 16);
#else
  return __uint_as_float(low_half << 16);
#endif
}
ENGINE_DEVICE float widen(bf16 value) { return widen(std::uint32_t{value.bits}); }
ENGINE_DEVICE float widen_low(std::uint32_t pair) { return widen(pair); }
ENGINE_DEVICE float widen_high(std::uint32_t pair) { return widen((pair & 0xffff0000u) >> 16); }

// Two values rounded to nearest even, `low` in the low half.
ENGINE_DEVICE std::uint32_t pack(float low, float high) {
#ifdef ENGINE_CUDA_EMULATED
  return std::uint32_t{to_bf16(low).bits} | (std::uint32_t{to_bf16(high).bits} << 16);
#else
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}
ENGINE_DEVICE bf16 narrow(float value) { return {static_cast<std::uint16_t>(pack(value, 0.0f) & 0xffffu)}; }

// 2^x, relative error about 2^-22; 0 for x ≤ -127 and for -infinity.
ENGINE_DEVICE float exp2_fast(float x) {
#ifdef ENGINE_CUDA_EMULATED
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
ENGINE_DEVICE float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }

ENGINE_DEVICE float infinity() {
#ifdef ENGINE_CUDA_EMULATED
  return INFINITY;
#else
  return __int_as_float(0x7f800000);
#endif
}
ENGINE_DEVICE float quiet_nan() {
#ifdef ENGINE_CUDA_EMULATED
  return NAN;
#else
  return __int_as_float(0x7fc00000);
#endif
}

// The same in fp16: two values rounded to nearest even, `low` in the low half; beyond ±65504 infinite.
ENGINE_DEVICE std::uint32_t pack_f16(float low, float high) {
#ifdef ENGINE_CUDA_EMULATED
  return std::uint32_t{to_f16(low).bits} | (std::uint32_t{to_f16(high).bits} << 16);
#else
  std::uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

ENGINE_DEVICE void unpack_f16(std::uint32_t pair, float& low, float& high) {
#ifdef ENGINE_CUDA_EMULATED
  low = to_float(f16{static_cast<std::uint16_t>(pair & 0xffffu)});
  high = to_float(f16{static_cast<std::uint16_t>(pair >> 16)});
#else
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(low), "=f"(high) : "r"(pair));
#endif
}

// The products of two pairs of fp16 values, rounded to nearest even.
ENGINE_DEVICE std::uint32_t multiply_pairs_f16(std::uint32_t a, std::uint32_t b) {
#ifdef ENGINE_CUDA_EMULATED
  float x[2], y[2];
  unpack_f16(a, x[0], x[1]);
  unpack_f16(b, y[0], y[1]);
  return pack_f16(x[0] * y[0], x[1] * y[1]);
#else
  std::uint32_t product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
#endif
}

// Byte i of the result is byte (selector >> 4·i) & 7 of {a, b}, a's first.
ENGINE_DEVICE std::uint32_t permute_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
#ifdef ENGINE_CUDA_EMULATED
  const std::uint64_t both = a | (std::uint64_t{b} << 32);
  std::uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) result |= static_cast<std::uint32_t>((both >> (8 * ((selector >> (4 * i)) & 7u))) & 0xffu) << (8 * i);
  return result;
#else
  return __byte_perm(a, b, selector);
#endif
}

// ---- between kernels of a stream (launch_chained)

// Returns when everything that was given to the stream before this kernel is done and can be seen. A kernel that is started by launch_chained begins
// earlier: before this it reads only what no kernel writes, and writes nothing but its own shared memory. Every thread calls it, once.
ENGINE_DEVICE void wait_for_previous() {
#if !defined(ENGINE_CUDA_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel of the stream may begin, when it is chained, as soon as all blocks have said so and there is room.
ENGINE_DEVICE void allow_next() {
#if !defined(ENGINE_CUDA_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Adds one to a counter in global memory and returns what it was. What this block wrote before a barrier that precedes the call is seen by whoever
// sees the new value and calls acquire().
ENGINE_DEVICE unsigned count_arrival(unsigned* counter) {
#ifdef ENGINE_CUDA_EMULATED
  return (*counter)++;
#else
  __threadfence();
  return atomicAdd(counter, 1u);
#endif
}
#ifndef ENGINE_CUDA_EMULATED
// A counter's value; what was written before the arrivals that it counts is seen by this thread, and by others behind a barrier.
ENGINE_DEVICE unsigned load_acquire(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}
#endif
// What another block wrote: from the cache that multiprocessors share.
ENGINE_DEVICE float load_shared_cache(const float* address) {
#ifdef ENGINE_CUDA_EMULATED
  return *address;
#else
  float value;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(address) : "memory");
  return value;
#endif
}
// Brings the line of an address into that cache.
ENGINE_DEVICE void prefetch(const void* address) {
#ifndef ENGINE_CUDA_EMULATED
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}
// Adds to a word of shared memory that other threads add to.
ENGINE_DEVICE void add_shared(unsigned* word, unsigned value) {
#ifdef ENGINE_CUDA_EMULATED
  *word += value;
#else
  atomicAdd(word, value);
#endif
}
ENGINE_DEVICE void acquire() {
#ifndef ENGINE_CUDA_EMULATED
  __threadfence();
#endif
}

// ---- lanes of a warp (warp)

ENGINE_DEVICE unsigned lane_id() {
#ifdef ENGINE_CUDA_EMULATED
  return emulation::lane_number;
#else
  return threadIdx.x % kWarp;  // blocks are one-dimensional
#endif
}

ENGINE_DEVICE void sync_warp() {
#ifdef ENGINE_CUDA_EMULATED
  emulation::meet(emulation::Together::sync_warp, nullptr, 0);
#else
  __syncwarp();
#endif
}

// The value of lane `from` of this lane's group of `width` lanes; only from % width counts.
template <class T>
ENGINE_DEVICE T shuffle(T value, unsigned from, unsigned width = kWarp) {
#ifdef ENGINE_CUDA_EMULATED
  const unsigned lane = emulation::lane_number;
  const std::byte* slots = emulation::meet(emulation::Together::shuffle, &value, sizeof(T));
  T result;
  std::memcpy(&result, slots + (lane / width * width + from % width) * emulation::kSlotBytes, sizeof(T));
  return result;
#else
  return __shfl_sync(0xffffffffu, value, static_cast<int>(from), static_cast<int>(width));
#endif
}

template <class T>
ENGINE_DEVICE T shuffle_xor(T value, unsigned mask) {
#ifdef ENGINE_CUDA_EMULATED
  return shuffle(value, emulation::lane_number ^ mask);
#else
  return __shfl_xor_sync(0xffffffffu, value, static_cast<int>(mask));
#endif
}

// Over groups of `width` lanes (a power of two); every lane has the result.
template <class T>
ENGINE_DEVICE T warp_sum(T value, unsigned width = kWarp) {
  for (unsigned mask = width / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}
ENGINE_DEVICE float warp_max(float value, unsigned width = kWarp) {
  for (unsigned mask = width / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

// ---- memory

// All of a block's dynamic shared memory, aligned to 1,024 bytes.
ENGINE_DEVICE void* block_shared() {
#ifdef ENGINE_CUDA_EMULATED
  return emulation::dynamic_shared();
#else
  extern __shared__ __align__(1024) unsigned char engine_dynamic_shared[];
  return engine_dynamic_shared;
#endif
}

ENGINE_DEVICE uint4 load16(const void* address) {
#ifdef ENGINE_CUDA_EMULATED
  emulation::check_aligned16(address);
#endif
  return *static_cast<const uint4*>(address);
}
ENGINE_DEVICE void store16(void* address, uint4 value) {
#ifdef ENGINE_CUDA_EMULATED
  emulation::check_aligned16(address);
#endif
  *static_cast<uint4*>(address) = value;
}
// What is read once and by nobody else: not kept in the first-level cache.
ENGINE_DEVICE uint4 load16_once(const void* address) {
#ifdef ENGINE_CUDA_EMULATED
  return load16(address);
#else
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
  return v;
#endif
}

// The same of memory that may have been written since this kernel began. Keeps its place among waits and barriers.
ENGINE_DEVICE uint4 load16_passing(const void* address) {
#ifdef ENGINE_CUDA_EMULATED
  return load16(address);
#else
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address) : "memory");
  return v;
#endif
}

// The same when `there`, without a branch; else `to` stays.
ENGINE_DEVICE void load16_once_if(bool there, const void* address, uint4& to) {
#ifdef ENGINE_CUDA_EMULATED
  if (there) to = load16(address);
#else
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0;\n@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"
               : "+r"(to.x), "+r"(to.y), "+r"(to.z), "+r"(to.w)
               : "l"(address), "r"(static_cast<int>(there)));
#endif
}

// Four fp32 values of 16 bytes, and back.
ENGINE_DEVICE float float_of(std::uint32_t bits) {
#ifdef ENGINE_CUDA_EMULATED
  return std::bit_cast<float>(bits);
#else
  return __uint_as_float(bits);
#endif
}
ENGINE_DEVICE std::uint32_t bits_of(float value) {
#ifdef ENGINE_CUDA_EMULATED
  return std::bit_cast<std::uint32_t>(value);
#else
  return __float_as_uint(value);
#endif
}
ENGINE_DEVICE void load_floats4(const float* address, float* out) {
  const uint4 v = load16(address);
  out[0] = float_of(v.x);
  out[1] = float_of(v.y);
  out[2] = float_of(v.z);
  out[3] = float_of(v.w);
}
ENGINE_DEVICE void store_floats4(float* address, const float* x) { store16(address, {bits_of(x[0]), bits_of(x[1]), bits_of(x[2]), bits_of(x[3])}); }

// Eight bf16 values of 16 bytes, as floats, and back.
ENGINE_DEVICE void widen8(uint4 packed, float (&out)[8]) {
  const std::uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = widen_low(words[i]);
    out[2 * i + 1] = widen_high(words[i]);
  }
}
ENGINE_DEVICE uint4 pack8(const float (&x)[8]) { return {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])}; }

// Copies `valid_bytes` ≤ 16 bytes from global to shared memory in the background and fills 16 up with zeros. Both are aligned to 16.
ENGINE_DEVICE void copy_async16(void* shared, const void* global, int valid_bytes = 16) {
#ifdef ENGINE_CUDA_EMULATED
  emulation::copy_later(shared, global, 16, static_cast<std::size_t>(valid_bytes));
#else
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid_bytes) : "memory");
#endif
}
// 8 bytes, aligned to 8; zeros when not `valid`.
ENGINE_DEVICE void copy_async8(void* shared, const void* global, bool valid = true) {
#ifdef ENGINE_CUDA_EMULATED
  emulation::copy_later(shared, global, 8, valid ? 8 : 0);
#else
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(global), "r"(valid ? 8 : 0) : "memory");
#endif
}
// Ends a group of copies.
ENGINE_DEVICE void copy_async_commit() {
#ifdef ENGINE_CUDA_EMULATED
  emulation::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `kLeft` of this thread's groups are under way; a barrier then shows the data to others.
template <int kLeft>
ENGINE_DEVICE void copy_async_wait() {
#ifdef ENGINE_CUDA_EMULATED
  emulation::wait_copies(kLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// An address in shared memory as a number (in the emulation it counts from dynamic shared memory), and the 4 bytes `kAhead` behind it.
ENGINE_DEVICE std::uint32_t shared_number(const void* address) {
#ifdef ENGINE_CUDA_EMULATED
  return static_cast<std::uint32_t>(static_cast<const unsigned char*>(address) - static_cast<const unsigned char*>(emulation::dynamic_shared()));
#else
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(address));
#endif
}
template <int kAhead>
ENGINE_DEVICE std::uint32_t load_shared4(std::uint32_t number) {
#ifdef ENGINE_CUDA_EMULATED
  return *reinterpret_cast<const std::uint32_t*>(static_cast<const unsigned char*>(emulation::dynamic_shared()) + number + kAhead);
#else
  std::uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1 + %2];" : "=r"(v) : "r"(number), "n"(kAhead));
  return v;
#endif
}

// ---- matrices (warp)

// Four 8×8 matrices of 16-bit values from shared memory: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes, aligned); register i holds,
// of matrix i, the pair (row lane / 4, columns 2·(lane % 4) …). Transposed: the pair is of the matrix's transpose.
template <bool kTransposed = false>
ENGINE_DEVICE void load_matrix4(std::uint32_t (&r)[4], const void* row) {
#ifdef ENGINE_CUDA_EMULATED
  emulation::check_aligned16(row);
  const unsigned lane = emulation::lane_number;
  const std::byte* slots = emulation::meet(emulation::Together::load_matrix, &row, sizeof row);
  for (unsigned i = 0; i < 4; ++i) {
    const auto element = [&](unsigned matrix_row, unsigned column) -> std::uint32_t {
      const std::uint16_t* at;
      std::memcpy(&at, slots + (i * 8 + matrix_row) * emulation::kSlotBytes, sizeof at);
      return at[column];
    };
    const unsigned major = lane / 4, minor = 2 * (lane % 4);
    r[i] = kTransposed ? element(minor, major) | (element(minor + 1, major) << 16) : element(major, minor) | (element(major, minor + 1) << 16);
  }
#else
  const auto at = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
#endif
}

#ifdef ENGINE_CUDA_EMULATED
namespace emulation {
// D = A·B of one warp: slots hold a lane's a[4] and b[2], results its four products.
void multiply_fragments(const std::byte* slots, std::byte* results);
void multiply_fragments_f16(const std::byte* slots, std::byte* results);
}  // namespace emulation
#endif

// c += a·b, bf16 operands, fp32 sums.
ENGINE_DEVICE void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
#ifdef ENGINE_CUDA_EMULATED
  const std::uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned lane = emulation::lane_number;
  const std::byte* results = emulation::meet(emulation::Together::multiply, mine, sizeof mine, emulation::multiply_fragments);
  float d[4];
  std::memcpy(d, results + lane * emulation::kSlotBytes, sizeof d);
  for (int i = 0; i < 4; ++i) c[i] += d[i];
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// The same with fp16 operands.
ENGINE_DEVICE void mma_f16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
#ifdef ENGINE_CUDA_EMULATED
  const std::uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned lane = emulation::lane_number;
  const std::byte* results = emulation::meet(emulation::Together::multiply, mine, sizeof mine, emulation::multiply_fragments_f16);
  float d[4];
  std::memcpy(d, results + lane * emulation::kSlotBytes, sizeof d);
  for (int i = 0; i < 4; ++i) c[i] += d[i];
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// c = a·b.
ENGINE_DEVICE void multiply_f16(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
#ifdef ENGINE_CUDA_EMULATED
  for (float& value : c) value = 0;
  mma_f16(c, a, b0, b1);
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
               : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
#endif
}

}  // namespace engine::cuda
