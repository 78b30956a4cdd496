// input_copies.h: inputs of layers on their way to pinned host memory and back, on a stream of their own.
//   Layers are counted from the lowest that the backward comes to. Offloaded layers 0 … n − 1 share kOffloadBuffers device buffers, layer l has number
//   l % kOffloadBuffers. The last kOffloadBuffers of them are still there when the backward begins and never travel.
#pragma once

#include <array>
#include <cstdint>

#include "core/bf16.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/stream.h"
#include "cuda/train/run_memory.h"

namespace engine::cuda {

class InputCopies {
 public:
  // `layers` offloaded ones, each at most [tokens, hidden].
  InputCopies(std::int64_t layers, std::int64_t tokens, std::int64_t hidden);

  static std::int64_t host_bytes(std::int64_t layers, std::int64_t tokens, std::int64_t hidden);

  // Before work that writes x[layer] is given to `stream`: its buffer's last owner must have left.
  void before_writing(std::int64_t layer, cudaStream_t stream);
  // x[layer] is complete after the work given to `stream` so far: copies `bytes` of it out.
  void leave(std::int64_t layer, const bf16* x, std::int64_t bytes, cudaStream_t stream);
  // The backward of `layer` has been given to `stream`: the layer that comes next to its buffer is fetched.
  void after_backward(std::int64_t layer, bf16* x, std::int64_t bytes, cudaStream_t stream);
  // Before the backward of `layer` is given to `stream`.
  void before_backward(std::int64_t layer, cudaStream_t stream);
  void synchronize() const { copying_.synchronize(); }

 private:
  bool travels(std::int64_t layer) const noexcept { return layer >= 0 && layer < layers_ - kOffloadBuffers; }
  bf16* home(std::int64_t layer) const noexcept { return host_.as<bf16>() + layer * elements_; }
  struct Buffer {
    Event used, copied;
    bool leaving = false, coming = false;
  };
  Buffer& buffer(std::int64_t layer) noexcept { return buffers_[static_cast<std::size_t>(layer % kOffloadBuffers)]; }

  std::int64_t layers_, elements_;
  PinnedMemory host_;
  Stream copying_;
  std::array<Buffer, kOffloadBuffers> buffers_;
};

}  // namespace engine::cuda
