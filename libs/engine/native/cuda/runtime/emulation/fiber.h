// fiber.h: threads of control that hand over to each other explicitly, on stacks of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace engine::cuda::emulation {

// A point to return to. The scheduler has one, and each fiber.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t saved;
#endif
  const void* stack_low = nullptr;  // for the address sanitizer, which must know where it is
  std::size_t stack_bytes = 0;
};

// Stacks for up to `count` fibers, one after another.
class FiberStacks {
 public:
  explicit FiberStacks(std::size_t count);
  ~FiberStacks();
  FiberStacks(const FiberStacks&) = delete;
  FiberStacks& operator=(const FiberStacks&) = delete;

  std::size_t count() const noexcept { return count_; }
  // Makes `context` a fiber that starts at `entry`, which must never return, when it is switched to.
  void prepare(std::size_t index, Context& context, void (*entry)()) const;
  // False when fiber `index` has used more stack than there is.
  bool intact(std::size_t index) const;

 private:
  std::byte* base_ = nullptr;
  std::size_t count_ = 0;
};

// Leaves `from` and goes on at `to`. `last` when `from` will not be returned to.
void switch_context(Context& from, Context& to, bool last = false);
// The first thing a fiber calls.
void entered_fiber();
// The context of the thread that runs fibers.
void describe_thread_stack(Context& context);

}  // namespace engine::cuda::emulation
