#include "cuda/infer/device_kv.h"

#include "core/bf16.h"
#include "core/error.h"

namespace engine::cuda {
namespace {

std::int64_t layer_block_bytes(const ModelSpec& spec) {
  return 2 * spec.kv_size() * DeviceKv::kBlockTokens * static_cast<std::int64_t>(sizeof(bf16));
}

std::int64_t blocks_in(const ModelSpec& spec, std::int64_t bytes) {
  const std::int64_t block = DeviceKv::block_bytes(spec), blocks = bytes / block - 1;
  require(Code::oom, blocks >= 1, "the key/value cache of ", bytes, " bytes is too small; one block of ", DeviceKv::kBlockTokens, " tokens needs ", block,
          " and there is one to spare");
  require(blocks < INT32_MAX, "the key/value cache of ", bytes, " bytes is too large");
  return blocks;
}

}  // namespace

std::int64_t DeviceKv::block_bytes(const ModelSpec& spec) { return spec.layers * layer_block_bytes(spec); }

DeviceKv::DeviceKv(const ModelSpec& spec, std::int64_t bytes, cudaStream_t stream)
    : blocks_(blocks_in(spec, bytes)), layers_(spec.layers), kv_heads_(spec.kv_heads), head_dim_(spec.head_dim), memory_((blocks_ + 1) * block_bytes(spec)),
      all_{memory_.data(), spec.layers, (blocks_ + 1) * layer_block_bytes(spec), layer_block_bytes(spec)}, stream_(stream) {
  fill_bytes(memory_.data(), 0, memory_.bytes(), stream_);
}

KvPool DeviceKv::layer(std::int64_t index) const noexcept {
  return {Dtype::bf16, static_cast<std::byte*>(memory_.data()) + index * all_.layer_bytes, blocks_ + 1, kBlockTokens, kv_heads_, head_dim_};
}

void DeviceKv::zero(std::span<const std::int32_t> blocks) noexcept {
  try {
    kv_zero(all_, blocks, stream_);
  } catch (...) {
    failure_ = std::current_exception();
  }
}

void DeviceKv::copy(std::int32_t to, std::int32_t from) noexcept {
  try {
    kv_copy(all_, to, from, stream_);
  } catch (...) {
    failure_ = std::current_exception();
  }
}

void DeviceKv::check() const {
  if (failure_) std::rethrow_exception(failure_);
}

}  // namespace engine::cuda
