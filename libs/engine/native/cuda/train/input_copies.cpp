#include "cuda/train/input_copies.h"

#include <algorithm>

namespace engine::cuda {

std::int64_t InputCopies::host_bytes(std::int64_t layers, std::int64_t tokens, std::int64_t hidden) {
  return std::max<std::int64_t>(0, layers - kOffloadBuffers) * tokens * hidden * static_cast<std::int64_t>(sizeof(bf16));
}

InputCopies::InputCopies(std::int64_t layers, std::int64_t tokens, std::int64_t hidden)
    : layers_(layers), elements_(tokens * hidden), host_(host_bytes(layers, tokens, hidden)) {}

void InputCopies::before_writing(std::int64_t layer, cudaStream_t stream) {
  if (layer >= layers_ || !buffer(layer).leaving) return;
  buffer(layer).copied.wait(stream);
  buffer(layer).leaving = false;
}

void InputCopies::leave(std::int64_t layer, const bf16* x, std::int64_t bytes, cudaStream_t stream) {
  if (!travels(layer)) return;
  Buffer& at = buffer(layer);
  at.used.record(stream);
  at.used.wait(copying_);
  copy_to_host(home(layer), x, bytes, copying_);
  at.copied.record(copying_);
  at.leaving = true;
}

void InputCopies::after_backward(std::int64_t layer, bf16* x, std::int64_t bytes, cudaStream_t stream) {
  const std::int64_t next = layer - kOffloadBuffers;
  if (layer >= layers_ || !travels(next)) return;
  Buffer& at = buffer(layer);
  at.used.record(stream);
  at.used.wait(copying_);
  copy_to_device(x, home(next), bytes, copying_);
  at.copied.record(copying_);
  at.coming = true;
}

void InputCopies::before_backward(std::int64_t layer, cudaStream_t stream) {
  if (layer >= layers_ || !buffer(layer).coming) return;
  buffer(layer).copied.wait(stream);
  buffer(layer).coming = false;
}

}  // namespace engine::cuda
