#include "cuda/runtime/emulation/execution.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cuda/runtime/emulation/fiber.h"

namespace engine::cuda::emulation {

ThreadIndex now;
dim3 block_size, grid_size;
unsigned lane_number = 0;

namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kMostShared = 227 << 10;  // of a block on compute capability 9.0
constexpr std::size_t kStaticShared = 48 << 10;
constexpr std::size_t kGuard = 128;             // poisoned bytes after it, looked at when the block ends
constexpr int kPoison = 0xff;
constexpr std::size_t kChunk = 16;

enum class State : std::uint8_t { ready, in_warp, at_barrier, at_counter, done };

struct PendingCopy {
  void* to;
  const void* from;
  std::size_t bytes, valid_bytes;
  int group;
};

struct Fiber {
  Context context;
  State state = State::done;
  dim3 index;
  const std::uint64_t* counter = nullptr;  // that it waits at
  std::vector<PendingCopy> copies;
  int committed = 0;  // groups
  std::vector<std::size_t> unfenced;  // 16-byte chunks of dynamic shared memory that its copies have filled
};

struct Warp {
  alignas(64) std::byte slots[2][kWarp * kSlotBytes];
  alignas(64) std::byte results[2][kWarp * kSlotBytes];
  unsigned round = 0, arrived = 0;
  Together what{};
};

struct StaticShared {
  const void* site;
  std::size_t offset;
};

struct Machine {
  std::mutex one_at_a_time;
  FiberStacks stacks{kMostThreads};
  Context scheduler;
  std::vector<Fiber> fibers{kMostThreads};
  std::vector<Warp> warps{kMostThreads / kWarp};
  std::vector<std::byte> shared = std::vector<std::byte>(kMostShared + kStaticShared + 2 * kGuard);
  std::byte* dynamic = nullptr;
  std::size_t dynamic_bytes = 0;
  std::vector<bool> unfenced = std::vector<bool>(kMostShared / kChunk);  // chunks that products must not read yet
  std::vector<StaticShared> statics;
  std::size_t static_used = 0;
  unsigned threads = 0, running = 0, at_barrier = 0, finished = 0;
  const std::function<void()>* body = nullptr;
  std::exception_ptr failure;
};

Machine& machine() {
  static Machine instance;
  return instance;
}

Order initial_order() {
  const char* wanted = std::getenv("ENGINE_CUDA_ORDER");
  return wanted != nullptr && std::string_view(wanted) == "descending" ? Order::descending : Order::ascending;
}
Order order = initial_order();

void fiber_main() {
  entered_fiber();
  Machine& m = machine();
  try {
    (*m.body)();
    for (const PendingCopy& copy : m.fibers[m.running].copies)
      if (copy.bytes > 0) fault("ends with an asynchronous copy that it has not waited for");
  } catch (...) {
    if (m.failure == nullptr) m.failure = std::current_exception();
  }
  Fiber& self = m.fibers[m.running];
  self.state = State::done;
  ++m.finished;
  switch_context(self.context, m.scheduler, true);
}

void yield_as(State state) {
  Machine& m = machine();
  const unsigned me = m.running;
  const ThreadIndex index = now;
  m.fibers[me].state = state;
  switch_context(m.fibers[me].context, m.scheduler);
  now = index;
  lane_number = me % kWarp;
}

void resume(unsigned thread) {
  Machine& m = machine();
  m.running = thread;
  now.thread = m.fibers[thread].index;
  lane_number = thread % kWarp;
  switch_context(m.scheduler, m.fibers[thread].context);
}

unsigned ordered(unsigned i, unsigned n) { return order == Order::ascending ? i : n - 1 - i; }

void run_block(std::size_t shared_bytes) {
  Machine& m = machine();
  m.statics.clear();
  m.static_used = 0;
  m.dynamic = reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(m.shared.data()) + kStaticShared + kGuard - 1) / kGuard * kGuard);
  std::memset(m.dynamic, kPoison, shared_bytes + kGuard);
  m.dynamic_bytes = shared_bytes;
  m.unfenced.assign(m.unfenced.size(), false);
  begin_block_products();
  m.at_barrier = m.finished = 0;
  m.failure = nullptr;
  for (unsigned t = 0; t < m.threads; ++t) {
    Fiber& fiber = m.fibers[t];
    fiber.state = State::ready;
    fiber.index = dim3(t % block_size.x, t / block_size.x % block_size.y, t / (block_size.x * block_size.y));
    fiber.copies.clear();
    fiber.committed = 0;
    fiber.unfenced.clear();
    m.stacks.prepare(t, fiber.context, fiber_main);
  }
  const unsigned warps = m.threads / kWarp;
  for (unsigned w = 0; w < warps; ++w) m.warps[w].round = m.warps[w].arrived = 0;
  while (m.finished < m.threads) {
    bool progress = false;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned first = ordered(i, warps) * kWarp;
      for (bool again = true; again;) {
        again = false;
        for (unsigned l = 0; l < kWarp; ++l) {
          const unsigned thread = first + ordered(l, kWarp);
          if (m.fibers[thread].state != State::ready) continue;
          resume(thread);
          if (m.failure != nullptr) std::rethrow_exception(std::exchange(m.failure, nullptr));
          again = progress = true;
        }
      }
    }
    if (!progress) fault("waits for threads that never come: a barrier or a warp's instruction was left out by some");
  }
  end_block_products(warps);
  for (unsigned t = 0; t < m.threads; ++t)
    if (!m.stacks.intact(t)) fail(Code::internal, "a kernel's thread used more stack than the emulation gives it");
  for (std::size_t i = 0; i < kGuard; ++i)
    if (m.dynamic[shared_bytes + i] != std::byte{kPoison}) fault("the block wrote beyond its shared memory");
}

}  // namespace

[[noreturn]] void fault(const std::string& what) {
  fail(Code::internal, "block (", now.block.x, ",", now.block.y, ",", now.block.z, ") thread ", now.thread.x, ": ", what);
}

const std::byte* meet(Together what, const void* mine, std::size_t bytes, Combine combine) {
  Machine& m = machine();
  Warp& warp = m.warps[m.running / kWarp];
  const unsigned side = warp.round % 2;
  if (warp.arrived == 0)
    warp.what = what;
  else if (warp.what != what)
    fault("lanes of one warp are in different instructions");
  if (bytes > 0) std::memcpy(warp.slots[side] + lane_number * kSlotBytes, mine, bytes);
  if (++warp.arrived < kWarp) {
    yield_as(State::in_warp);
  } else {
    warp.arrived = 0;
    ++warp.round;
    if (combine != nullptr) combine(warp.slots[side], warp.results[side]);
    const unsigned first = m.running / kWarp * kWarp;
    for (unsigned l = 0; l < kWarp; ++l)
      if (m.fibers[first + l].state == State::in_warp) m.fibers[first + l].state = State::ready;
  }
  return combine != nullptr ? warp.results[side] : warp.slots[side];
}

void check_aligned16(const void* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) fault("a 16-byte access is not aligned");
}

void sync_block() {
  Machine& m = machine();
  if (m.finished > 0) fault("reaches a barrier after other threads of its block have ended");
  if (++m.at_barrier < m.threads) {
    yield_as(State::at_barrier);
    return;
  }
  m.at_barrier = 0;
  for (unsigned t = 0; t < m.threads; ++t)
    if (m.fibers[t].state == State::at_barrier) m.fibers[t].state = State::ready;
}

// A counting barrier's word: arrivals that a phase takes, arrivals that are missing, phases that are over; 16 bits each.
void prepare_counter(std::uint64_t* counter, unsigned arrivals) {
  if (arrivals == 0 || arrivals > 0xffff) fault("a counting barrier for no arrivals, or too many");
  *counter = std::uint64_t{arrivals} | std::uint64_t{arrivals} << 16;
}

void arrive_at_counter(std::uint64_t* counter) {
  Machine& m = machine();
  const std::uint64_t all = *counter & 0xffff, missing = *counter >> 16 & 0xffff, phases = *counter >> 32 & 0xffff;
  if (missing == 0 || missing > all || *counter >> 48 != 0) fault("arrives at a counting barrier that was not prepared");
  *counter = all | (missing == 1 ? all : missing - 1) << 16 | ((phases + (missing == 1 ? 1 : 0)) & 0xffff) << 32;
  if (missing > 1) return;
  for (unsigned t = 0; t < m.threads; ++t)
    if (m.fibers[t].state == State::at_counter && m.fibers[t].counter == counter) m.fibers[t].state = State::ready;
}

void wait_at_counter(const std::uint64_t* counter, unsigned parity) {
  Machine& m = machine();
  while ((*counter >> 32 & 1) == parity) {
    m.fibers[m.running].counter = counter;
    yield_as(State::at_counter);
  }
}

void* dynamic_shared() { return machine().dynamic; }

void* static_shared(const void* site, std::size_t bytes) {
  Machine& m = machine();
  for (const StaticShared& known : m.statics)
    if (known.site == site) return m.shared.data() + known.offset;
  const std::size_t offset = (m.static_used + 127) / 128 * 128;
  m.static_used = offset + bytes;
  if (m.static_used > kStaticShared) fault("the block declares more than 48 KiB of static shared memory");
  m.statics.push_back({site, offset});
  std::memset(m.shared.data() + offset, kPoison, bytes);
  return m.shared.data() + offset;
}

void copy_later(void* to, const void* from, std::size_t bytes, std::size_t valid_bytes) {
  Machine& m = machine();
  Fiber& self = m.fibers[m.running];
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 || (valid_bytes > 0 && reinterpret_cast<std::uintptr_t>(from) % bytes != 0))
    fault("an asynchronous copy is not aligned to its size");
  self.copies.push_back({to, from, bytes, valid_bytes, self.committed});
}

void commit_copies() {
  Machine& m = machine();
  ++m.fibers[m.running].committed;
}

void wait_copies(int groups_left) {
  Machine& m = machine();
  Fiber& self = m.fibers[m.running];
  std::size_t done = 0;
  for (const PendingCopy& copy : self.copies) {
    if (copy.group >= self.committed - groups_left) break;
    if (copy.valid_bytes > 0) std::memcpy(copy.to, copy.from, copy.valid_bytes);
    std::memset(static_cast<std::byte*>(copy.to) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
    const std::uintptr_t offset = reinterpret_cast<std::uintptr_t>(copy.to) - reinterpret_cast<std::uintptr_t>(m.dynamic);
    if (offset < m.dynamic_bytes) {
      m.unfenced[offset / kChunk] = true;
      self.unfenced.push_back(offset / kChunk);
    }
    ++done;
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

std::uint64_t shared_address(const void* address) {
  const Machine& m = machine();
  const std::uintptr_t offset = reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(m.dynamic);
  if (offset >= m.dynamic_bytes) fault("a matrix descriptor of an address outside dynamic shared memory");
  if (offset % kChunk != 0) fault("a matrix descriptor of an address that is not a multiple of 16");
  return offset;
}

const void* shared_for_products(std::uint64_t address, std::size_t bytes) {
  const Machine& m = machine();
  if (address + bytes > m.dynamic_bytes) fault("a product reads beyond shared memory");
  if (m.unfenced[address / kChunk]) fault("a product reads a copy that its writer has not fenced");
  return m.dynamic + address;
}

void fence_proxy() {
  Machine& m = machine();
  std::vector<std::size_t>& chunks = m.fibers[m.running].unfenced;
  for (const std::size_t chunk : chunks) m.unfenced[chunk] = false;
  chunks.clear();
}

cudaError_t launch_grid(cudaStream_t stream, dim3 grid, dim3 block, std::size_t shared_bytes, std::function<void()> body) {
  const unsigned threads = block.x * block.y * block.z;
  const bool fits = threads > 0 && threads <= kMostThreads && threads % kWarp == 0 && shared_bytes <= kMostShared && grid.x > 0 && grid.y > 0 &&
                    grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  if (!fits) return cudaErrorInvalidConfiguration;
  return enqueue(stream, [=, work = std::move(body)] {
    Machine& m = machine();
    const std::lock_guard lock(m.one_at_a_time);
    describe_thread_stack(m.scheduler);
    m.threads = threads;
    m.body = &work;
    grid_size = grid;
    block_size = block;
    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    for (std::uint64_t i = 0; i < blocks; ++i) {
      const std::uint64_t b = order == Order::ascending ? i : blocks - 1 - i;
      now.block = dim3(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y), static_cast<unsigned>(b / grid.x / grid.y));
      run_block(shared_bytes);
    }
  });
}

void set_order(Order wanted) { order = wanted; }

}  // namespace engine::cuda::emulation
