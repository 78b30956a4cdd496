// gemm.h: products of bf16 matrices, summed in fp32.   c = alpha · op(a)·op(b) + beta · c + bias
//   nt: a [M,K], b [N,K]     y  = x·wᵀ
//   nn: a [M,K], b [K,N]     dx = dy·w
//   tn: a [K,M], b [K,N]     dw = dyᵀ·x
//   c [M,N] is bf16 (rounded once, at the end) or fp32; with beta 0 its old contents are never read. bias [N] is added to every row.
//   An empty sum (K = 0) gives beta · c + bias. Strides of bf16 views are multiples of 8; M, N and K may be anything.
//   Deterministic: a shape's algorithm is chosen once, sums have a fixed order, and no two streams share a workspace.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "cuda/ops/view.h"
#include "cuda/runtime/handles.h"
#include "cuda/runtime/memory.h"

namespace engine::cuda {

enum class GemmForm : std::uint8_t { nt, nn, tn };

// The engine's own kernel (mma.sync, any device from compute capability 8.0). Needs no library.
void gemm_mma(GemmForm form, View<const bf16> a, View<const bf16> b, View<bf16> c, float alpha, float beta, const bf16* bias, cudaStream_t stream);
void gemm_mma(GemmForm form, View<const bf16> a, View<const bf16> b, View<float> c, float alpha, float beta, const bf16* bias, cudaStream_t stream);

enum class GemmLibrary : std::uint8_t { automatic, none };  // automatic: cuBLASLt when it can be opened, else gemm_mma

// Products on one device. Use one object for each stream that computes products at the same time: it owns that stream's workspace.
class Gemm {
 public:
  // Throws oom when the workspace cannot be had.
  explicit Gemm(GemmLibrary library = GemmLibrary::automatic);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  void operator()(GemmForm form, View<const bf16> a, View<const bf16> b, View<bf16> c, cudaStream_t stream, float alpha = 1.0f, float beta = 0.0f,
                  const bf16* bias = nullptr);
  void operator()(GemmForm form, View<const bf16> a, View<const bf16> b, View<float> c, cudaStream_t stream, float alpha = 1.0f, float beta = 0.0f,
                  const bf16* bias = nullptr);

  // Chooses the algorithm of a shape by timing the library's best candidates on scratch memory of the shape's size (given, device, 256-byte aligned;
  // contents lost). Without it the first use takes the library's own first choice. Never call while a graph is captured. No-op without the library.
  void tune(GemmForm form, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t lda, std::int64_t ldb, std::int64_t ldc, bool c_is_f32,
            bool accumulate, bool has_bias, void* scratch, std::int64_t scratch_bytes, cudaStream_t stream);
  // Bytes of scratch that tune needs for that shape.
  static std::int64_t tune_bytes(GemmForm form, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t lda, std::int64_t ldb, std::int64_t ldc,
                                 bool c_is_f32);

  // The chosen algorithms as text, so that a run continued elsewhere computes the same bits. `restore` ignores a text written with another library
  // version or on another kind of device, and returns whether it was used.
  std::string choices() const;
  bool restore(std::string_view choices);

  std::string_view library() const noexcept;  // "cublasLt 13.1.1" or "mma"
  static constexpr std::int64_t workspace_bytes() { return std::int64_t{32} << 20; }

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace engine::cuda
