#include "cuda/runtime/emulation/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstring>

#include "core/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves what a call must preserve on the old stack, takes the new one and restores the same from it.
extern "C" void engine_fiber_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl engine_fiber_switch
.hidden engine_fiber_switch
.type engine_fiber_switch, @function
engine_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size engine_fiber_switch, .-engine_fiber_switch
)");
#endif

namespace engine::cuda::emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 512 << 10;
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif
constexpr std::uint64_t kCanary = 0x5afe57ac5afe57ac;

}  // namespace

FiberStacks::FiberStacks(std::size_t count) : count_(count) {
  void* memory = ::mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  require(Code::oom, memory != MAP_FAILED, "no memory for the stacks of ", count, " fibers");
  base_ = static_cast<std::byte*>(memory);
  for (std::size_t i = 0; i < count; ++i) std::memcpy(base_ + i * kStackBytes, &kCanary, sizeof kCanary);
}

FiberStacks::~FiberStacks() { ::munmap(base_, count_ * kStackBytes); }

bool FiberStacks::intact(std::size_t index) const { return std::memcmp(base_ + index * kStackBytes, &kCanary, sizeof kCanary) == 0; }

void FiberStacks::prepare(std::size_t index, Context& context, void (*entry)()) const {
  std::byte* low = base_ + index * kStackBytes;
  context.stack_low = low;
  context.stack_bytes = kStackBytes;
#if defined(__x86_64__)
  auto** top = reinterpret_cast<void**>(low + kStackBytes);
  *--top = nullptr;                                // where entry would return to: the stack is as after a call
  *--top = reinterpret_cast<void*>(entry);         // popped by ret
  for (int i = 0; i < 6; ++i) *--top = nullptr;    // the six saved registers
  context.stack_pointer = top;
#else
  ::getcontext(&context.saved);
  context.saved.uc_stack.ss_sp = low + sizeof kCanary;
  context.saved.uc_stack.ss_size = kStackBytes - sizeof kCanary;
  context.saved.uc_link = nullptr;
  ::makecontext(&context.saved, entry, 0);
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, to.stack_low, to.stack_bytes);
#endif
#if defined(__x86_64__)
  engine_fiber_switch(&from.stack_pointer, to.stack_pointer);
#else
  ::swapcontext(&from.saved, &to.saved);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void entered_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void describe_thread_stack(Context& context) {
  pthread_attr_t attributes;
  void* low = nullptr;
  std::size_t bytes = 0;
  if (::pthread_getattr_np(::pthread_self(), &attributes) != 0) fail(Code::internal, "the stack of this thread is unknown");
  ::pthread_attr_getstack(&attributes, &low, &bytes);
  ::pthread_attr_destroy(&attributes);
  context.stack_low = low;
  context.stack_bytes = bytes;
}

}  // namespace engine::cuda::emulation
