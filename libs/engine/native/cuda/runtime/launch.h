// launch.h: the one way a kernel is started, on a device and in the emulation alike.
//   launch(stream, grid, block, shared_bytes, kernel, arguments…): arguments are converted to the kernel's parameter types, as in a call.
//   Empty grids start nothing. Block sizes are multiples of 32. Throws what the launch returned; faults inside a kernel show at a later call.
#pragma once

#include <cstdint>
#include <limits>
#include <tuple>
#include <utility>

#include "cuda/runtime/error.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {

// A grid dimension from a 64-bit count.
inline unsigned blocks(std::int64_t count) {
  require(count >= 0 && count <= std::numeric_limits<std::int32_t>::max(), "a grid of ", count, " blocks");
  return static_cast<unsigned>(count);
}

constexpr std::int64_t ceil_div(std::int64_t n, std::int64_t d) { return (n + d - 1) / d; }

namespace detail {

enum class Start : std::uint8_t { after_previous, chained };

template <class... Parameters, class... Arguments>
void launch(Start start, cudaStream_t stream, dim3 grid, dim3 block, std::int64_t shared_bytes, void (*kernel)(Parameters...), Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "a kernel takes as many arguments as it has parameters");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto shared = static_cast<std::size_t>(shared_bytes);
#ifdef ENGINE_CUDA_EMULATED
  std::tuple<std::remove_cv_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  CUDA_CHECK(emulation::launch_grid(stream, grid, block, shared, [kernel, values] { std::apply(kernel, values); }));
#else
  if (shared > (48u << 10)) CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  // Blocks of one kernel enter a multiprocessor beside another's only where both want the same of its memory as shared memory; to change that, it must be
  // empty. So all kernels of a chain want the most.
  if (start == Start::chained) CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = start == Start::chained && can_chain() ? 1 : 0;
  std::tuple<std::remove_cv_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  std::apply([&](auto&... value) {
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
    CUDA_CHECK(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers));
  }, values);
#endif
}

}  // namespace detail

template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, dim3 grid, dim3 block, std::int64_t shared_bytes, void (*kernel)(Parameters...), Arguments&&... arguments) {
  detail::launch(detail::Start::after_previous, stream, grid, block, shared_bytes, kernel, std::forward<Arguments>(arguments)...);
}

// For a kernel that calls wait_for_previous() (ptx.h): it may begin while the kernel before it still runs, once that has called allow_next().
template <class... Parameters, class... Arguments>
void launch_chained(cudaStream_t stream, dim3 grid, dim3 block, std::int64_t shared_bytes, void (*kernel)(Parameters...), Arguments&&... arguments) {
  detail::launch(detail::Start::chained, stream, grid, block, shared_bytes, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace engine::cuda
