// arena.h: scratch memory for one pass over a model, taken from the front and given back all at once.
//   A pass of the same shapes takes the same memory again, so after the first one nothing is allocated. Contents are undefined.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "ops/matrix.h"

namespace engine {

class Arena {
 public:
  Arena() = default;
  // One that hands out null and only counts: what a pass will take is found by taking it from such an arena.
  enum class Measuring : std::uint8_t { on };
  explicit Arena(Measuring) : measuring_(true) {}

  // `count` values, 64-byte aligned, valid until release() past them or reset(). Throws oom naming the size.
  template <class T>
  T* take(std::int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<std::int64_t>(sizeof(T))));
  }
  Rows rows(std::int64_t count, std::int64_t cols) { return {take<float>(count * cols), count, cols}; }

  // Everything taken since mark() is given back at the end of the scope.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), block_(arena.block_), used_(arena.used_) {}
    ~Scope() {
      arena_.block_ = block_;
      arena_.used_ = used_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    std::size_t block_;
    std::int64_t used_;
  };

  // Has at least `bytes` in one piece, and exactly that many when what there is does not suffice. Only where nothing is taken. Throws oom.
  void reserve(std::int64_t bytes);
  // Gives everything back. Memory that grew in pieces becomes one piece of the size needed so far.
  void reset();
  // Frees the memory too.
  void clear();
  std::int64_t capacity_bytes() const noexcept;
  std::int64_t peak_bytes() const noexcept { return peak_; }  // the most that was taken at once since clear(), in one piece

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept { ::operator delete(memory, std::align_val_t{64}); }
  };
  struct Block {
    std::unique_ptr<std::byte, Free> memory;
    std::int64_t bytes = 0;
  };

  void* take_bytes(std::int64_t bytes);
  static Block allocate(std::int64_t bytes);

  std::vector<Block> blocks_;
  std::size_t block_ = 0;   // the block in use
  std::int64_t used_ = 0;   // of it
  std::int64_t peak_ = 0;
  bool measuring_ = false;
};

}  // namespace engine
