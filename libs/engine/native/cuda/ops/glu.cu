// glu.cu: 8 values a thread. Bytes a value: forward 6; backward 10, with out 12. Memory bandwidth is the limit.
#include "core/error.h"
#include "cuda/ops/glu.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/ptx.h"

namespace engine::cuda {
namespace {

constexpr unsigned kThreads = 256;

struct Activated {
  float value, slope;  // act(x), act'(x)
};

ENGINE_DEVICE Activated silu(float x) {
  const float gate = 1.0f / (1.0f + exp_fast(-x));
  return {x * gate, gate * (1.0f + x * (1.0f - gate))};
}

// The tanh form: 1/2 (1 + tanh u) = σ(2u).
ENGINE_DEVICE Activated gelu_tanh(float x) {
  constexpr float kRoot = 0.7978845608028654f, kCubic = 0.044715f;
  const float u = kRoot * (x + kCubic * x * x * x);
  const float half = 1.0f / (1.0f + exp_fast(-2.0f * u));
  return {x * half, half + 2.0f * x * half * (1.0f - half) * kRoot * (1.0f + 3.0f * kCubic * x * x)};
}

template <Activation kAct>
ENGINE_DEVICE Activated activate(float x) {
  return kAct == Activation::silu ? silu(x) : gelu_tanh(x);
}

template <Activation kAct>
__global__ void __launch_bounds__(kThreads) forward(View<const bf16> gate_up, View<bf16> out) {
  allow_next();
  wait_for_previous();
  const std::int64_t row = blockIdx.x, column = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * 8;
  if (column >= out.cols) return;
  float gate[8], up[8];
  widen8(load16_once(gate_up.row(row) + column), gate);
  widen8(load16_once(gate_up.row(row) + out.cols + column), up);
#pragma unroll
  for (int i = 0; i < 8; ++i) gate[i] = activate<kAct>(gate[i]).value * up[i];
  store16(out.row(row) + column, pack8(gate));
}

template <Activation kAct>
__global__ void __launch_bounds__(kThreads) backward(View<const bf16> dout, View<bf16> gate_up, View<bf16> out) {
  const std::int64_t row = blockIdx.x, column = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * 8;
  if (column >= dout.cols) return;
  bf16* gate_at = gate_up.row(row) + column;
  bf16* up_at = gate_at + dout.cols;
  float gate[8], up[8], gradient[8], product[8];
  widen8(load16(gate_at), gate);
  widen8(load16(up_at), up);
  widen8(load16(dout.row(row) + column), gradient);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Activated act = activate<kAct>(gate[i]);
    product[i] = act.value * up[i];
    gate[i] = gradient[i] * up[i] * act.slope;
    up[i] = gradient[i] * act.value;
  }
  store16(gate_at, pack8(gate));
  store16(up_at, pack8(up));
  if (out.data != nullptr) store16(out.row(row) + column, pack8(product));
}

dim3 grid_of(std::int64_t rows, std::int64_t cols) { return {blocks(rows), blocks(ceil_div(cols, 8 * kThreads))}; }

void check(std::int64_t rows, std::int64_t cols, View<const bf16> gate_up) {
  require(cols % 8 == 0 && gate_up.rows == rows && gate_up.cols == 2 * cols, "gate and up are ", gate_up.rows, "x", gate_up.cols, " for an output of ", rows,
          "x", cols, "; the device takes twice a multiple of 8");
}

}  // namespace

void glu_forward(Activation act, View<const bf16> gate_up, View<bf16> out, cudaStream_t stream) {
  check(out.rows, out.cols, gate_up);
  launch_chained(stream, grid_of(out.rows, out.cols), kThreads, 0, act == Activation::silu ? forward<Activation::silu> : forward<Activation::gelu_tanh>, gate_up, out);
}

void glu_backward(Activation act, View<const bf16> dout, View<bf16> gate_up, View<bf16> out, cudaStream_t stream) {
  check(dout.rows, dout.cols, gate_up);
  require(out.data == nullptr || (out.rows == dout.rows && out.cols == dout.cols), "out is ", out.rows, "x", out.cols, ", dout ", dout.rows, "x", dout.cols);
  launch(stream, grid_of(dout.rows, dout.cols), kThreads, 0, act == Activation::silu ? backward<Activation::silu> : backward<Activation::gelu_tanh>, dout,
         gate_up, out);
}

}  // namespace engine::cuda
