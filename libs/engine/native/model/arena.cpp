#include "model/arena.h"

#include <algorithm>

#include "core/error.h"

namespace engine {
namespace {

constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t kSmallestBlock = 1 << 20;

}  // namespace

Arena::Block Arena::allocate(std::int64_t bytes) {
  auto* memory = static_cast<std::byte*>(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{kAlignment}, std::nothrow));
  require(Code::oom, memory != nullptr, "out of memory: ", bytes, " bytes of scratch are not to be had; use shorter rows or smaller micro-batches");
  return {std::unique_ptr<std::byte, Free>(memory), bytes};
}

void* Arena::take_bytes(std::int64_t bytes) {
  const std::int64_t size = (std::max<std::int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  if (measuring_) {
    used_ += size;
    peak_ = std::max(peak_, used_);
    return nullptr;
  }
  if (blocks_.empty()) blocks_.push_back(allocate(std::max(size, kSmallestBlock)));
  while (used_ + size > blocks_[block_].bytes) {
    // A block left behind by a wider pass serves again if it is large enough; one that is too small is skipped until reset().
    if (block_ + 1 == blocks_.size()) blocks_.push_back(allocate(std::max(size, capacity_bytes() / 4)));
    ++block_;
    used_ = 0;
  }
  void* result = blocks_[block_].memory.get() + used_;
  used_ += size;
  peak_ = std::max(peak_, used_);
  return result;
}

void Arena::reserve(std::int64_t bytes) {
  reset();
  if (capacity_bytes() >= bytes) return;
  clear();
  blocks_.push_back(allocate(bytes));
}

void Arena::reset() {
  if (blocks_.size() > 1) {
    const std::int64_t bytes = capacity_bytes();
    blocks_.clear();
    blocks_.push_back(allocate(bytes));
  }
  block_ = 0;
  used_ = 0;
}

void Arena::clear() {
  blocks_.clear();
  block_ = 0;
  used_ = 0;
  peak_ = 0;
}

std::int64_t Arena::capacity_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const Block& block : blocks_) bytes += block.bytes;
  return bytes;
}

}  // namespace engine
