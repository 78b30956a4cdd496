// adamw.cu: one warp for each block of 256 states, 8 a lane; one thread a value for fp32 states. Bytes a value: 8-bit 16 (p twice, g, codes twice each),
// fp32 28. Memory bandwidth is the limit.
//   A code is found by two look-ups in shared memory (Dynamic8Lookup of ops/dynamic8.h), the same entry that the search of the definition finds.
#include <algorithm>

#include "core/code_tables.h"
#include "core/error.h"
#include "cuda/ops/adamw.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"
#include "cuda/runtime/stream.h"
#include "ops/dynamic8.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int kBins = Dynamic8Lookup::kLastBin - Dynamic8Lookup::kFirstBin + 1;

// A kernel's argument (9 KB of the 32 that arguments may have), copied to shared memory by each block.
struct CodeTables {
  float signed_map[256], signed_middle[256];
  float unsigned_map[256], unsigned_middle[256];
  std::uint8_t signed_positive[kBins], signed_negative[kBins], unsigned_positive[kBins];
};

CodeTables make_tables() {
  CodeTables tables{};
  const Dynamic8Lookup &s = signed_lookup(), &u = unsigned_lookup();
  for (std::size_t i = 0; i < 256; ++i) {
    tables.signed_map[i] = kDynamicSigned[i];
    tables.unsigned_map[i] = kDynamicUnsigned[i];
    tables.signed_middle[i] = s.middle[i];
    tables.unsigned_middle[i] = u.middle[i];
  }
  for (std::size_t i = 0; i < kBins; ++i) {
    tables.signed_positive[i] = static_cast<std::uint8_t>(s.positive[i]);
    tables.signed_negative[i] = static_cast<std::uint8_t>(s.negative[i]);
    tables.unsigned_positive[i] = static_cast<std::uint8_t>(u.positive[i]);
  }
  return tables;
}

const CodeTables& tables() {
  static const CodeTables made = make_tables();
  return made;
}

ENGINE_DEVICE unsigned nearest(const std::uint8_t* positive, const std::uint8_t* negative, const float* middle, float x) {
  int bin = static_cast<int>((bits_of(x) & 0x7fffffffu) >> 16);
  bin = bin < Dynamic8Lookup::kFirstBin ? Dynamic8Lookup::kFirstBin : bin > Dynamic8Lookup::kLastBin ? Dynamic8Lookup::kLastBin : bin;
  const unsigned first = (x < 0 ? negative : positive)[bin - Dynamic8Lookup::kFirstBin];
  return first + (x > middle[first] ? 1u : 0u);
}

// Eight codes of eight bytes, and back.
ENGINE_DEVICE void split(uint2 words, unsigned (&codes)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    codes[i] = words.x >> 8 * i & 0xffu;
    codes[4 + i] = words.y >> 8 * i & 0xffu;
  }
}
ENGINE_DEVICE uint2 joined(const unsigned (&codes)[8]) {
  return {codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24, codes[4] | codes[5] << 8 | codes[6] << 16 | codes[7] << 24};
}

struct Moments {
  float m, v;
};

// The order of operations is that of the CPU's definition (ops/adamw_cpu.cpp), so the bits are.
ENGINE_DEVICE Moments next_moments(const AdamWConstants& c, float grad_scale, float g, float m, float v) {
  const float scaled = g * grad_scale;
  return {m * c.beta1 + c.one_minus_beta1 * scaled, v * c.beta2 + c.one_minus_beta2 * scaled * scaled};
}

ENGINE_DEVICE float updated(const AdamWConstants& c, float p, Moments s) {
  if (c.decay_before) p *= c.decay;
  p -= c.step_size * (s.m / (sqrtf(s.v) + c.epsilon));
  if (!c.decay_before) p *= c.decay;
  return p;
}

ENGINE_DEVICE bool is_finite(float x) { return fabsf(x) < infinity(); }

__global__ void __launch_bounds__(kThreads)
    update_f32(const AdamWConstants* constants, const float* grad_scale, float* p, const float* g, float* m, float* v, std::int64_t n) {
  const float scale = *grad_scale;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n || !is_finite(scale)) return;
  const AdamWConstants c = *constants;
  const Moments s = next_moments(c, scale, g[i], m[i], v[i]);
  m[i] = s.m;
  v[i] = s.v;
  p[i] = updated(c, p[i], s);
}

__global__ void __launch_bounds__(kThreads)
    update_8bit(const AdamWConstants* constants, const float* grad_scale, float* p, const float* g, std::uint8_t* m_codes, std::uint8_t* v_codes,
                float* m_absmax, float* v_absmax, std::int64_t n, const CodeTables given) {
  SHARED_ARRAY(CodeTables, shared, 1);
  for (unsigned i = threadIdx.x; i < 256; i += kThreads) {
    shared->signed_map[i] = given.signed_map[i];
    shared->signed_middle[i] = given.signed_middle[i];
    shared->unsigned_map[i] = given.unsigned_map[i];
    shared->unsigned_middle[i] = given.unsigned_middle[i];
  }
  for (unsigned i = threadIdx.x; i < kBins; i += kThreads) {
    shared->signed_positive[i] = given.signed_positive[i];
    shared->signed_negative[i] = given.signed_negative[i];
    shared->unsigned_positive[i] = given.unsigned_positive[i];
  }
  __syncthreads();
  const float scale = *grad_scale;
  if (!is_finite(scale)) return;
  const AdamWConstants c = *constants;
  const CodeTables& t = *shared;
  const std::int64_t count = dynamic_blocks(n);
  for (std::int64_t block = std::int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp; block < count; block += std::int64_t{gridDim.x} * (kThreads / kWarp)) {
    const std::int64_t first = block * kDynamicBlock + lane_id() * 8;
    const float m_scale = m_absmax[block], v_scale = v_absmax[block];
    Moments states[8];
    float values[8];
    float m_largest = 0, v_largest = 0;
    const bool whole = first + 8 <= n;
    float gradients[8] = {};
    unsigned m_old[8] = {}, v_old[8] = {};
    if (whole) {
      load_floats4(g + first, gradients);
      load_floats4(g + first + 4, gradients + 4);
      load_floats4(p + first, values);
      load_floats4(p + first + 4, values + 4);
      split(*reinterpret_cast<const uint2*>(m_codes + first), m_old);
      split(*reinterpret_cast<const uint2*>(v_codes + first), v_old);
    } else {
      for (int i = 0; i < 8 && first + i < n; ++i) {
        gradients[i] = g[first + i];
        values[i] = p[first + i];
        m_old[i] = m_codes[first + i];
        v_old[i] = v_codes[first + i];
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i >= n) continue;
      states[i] = next_moments(c, scale, gradients[i], t.signed_map[m_old[i]] * m_scale, t.unsigned_map[v_old[i]] * v_scale);
      m_largest = fmaxf(m_largest, fabsf(states[i].m));
      v_largest = fmaxf(v_largest, fabsf(states[i].v));
    }
    m_largest = warp_max(m_largest);
    v_largest = warp_max(v_largest);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (first + i >= n) continue;
      values[i] = updated(c, values[i], states[i]);
      // Never an entry of the other sign: a first moment must not start to pull the other way by rounding.
      unsigned m_code = nearest(t.signed_positive, t.signed_negative, t.signed_middle, m_largest > 0 ? states[i].m / m_largest : 0.0f);
      if ((bits_of(t.signed_map[m_code]) ^ bits_of(states[i].m)) >> 31 != 0) m_code = states[i].m > 0 ? m_code + 1 : m_code - 1;
      m_old[i] = m_code;
      v_old[i] = nearest(t.unsigned_positive, t.unsigned_positive, t.unsigned_middle, v_largest > 0 ? states[i].v / v_largest : 0.0f);
    }
    if (whole) {
      store_floats4(p + first, values);
      store_floats4(p + first + 4, values + 4);
      *reinterpret_cast<uint2*>(m_codes + first) = joined(m_old);
      *reinterpret_cast<uint2*>(v_codes + first) = joined(v_old);
    } else {
      for (int i = 0; i < 8 && first + i < n; ++i) {
        p[first + i] = values[i];
        m_codes[first + i] = static_cast<std::uint8_t>(m_old[i]);
        v_codes[first + i] = static_cast<std::uint8_t>(v_old[i]);
      }
    }
    if (lane_id() == 0) {
      m_absmax[block] = m_largest;
      v_absmax[block] = v_largest;
    }
  }
}

}  // namespace

void adamw_f32(const AdamWConstants* constants, const float* grad_scale, float* p, const float* g, float* m, float* v, std::int64_t n, cudaStream_t stream) {
  launch(stream, blocks(ceil_div(n, kThreads)), kThreads, 0, update_f32, constants, grad_scale, p, g, m, v, n);
}

void adamw_8bit(const AdamWConstants* constants, const float* grad_scale, float* p, const float* g, std::uint8_t* m_codes, std::uint8_t* v_codes,
                float* m_absmax, float* v_absmax, std::int64_t n, cudaStream_t stream) {
  const std::int64_t wanted = ceil_div(dynamic_blocks(n), kThreads / kWarp);
  launch(stream, blocks(std::min<std::int64_t>(wanted, 8 * multiprocessors())), kThreads, 0, update_8bit, constants, grad_scale, p, g, m_codes, v_codes,
         m_absmax, v_absmax, n, tables());
}

}  // namespace engine::cuda
