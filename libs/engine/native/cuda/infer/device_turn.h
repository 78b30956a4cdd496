// device_turn.h: whose turn it is on a device, among a process's runners.
//   Products of few rows with adapters run in kernels whose blocks wait for each other (ops/lora_fold.cuh). Several of them at once, from several streams,
//   could each keep out the blocks that the others wait for; so a step that has them has the device's turn until its work has ended. Other work ends by itself.
#pragma once

#include <array>
#include <mutex>

#include "core/error.h"

namespace engine::cuda {

inline std::unique_lock<std::mutex> device_turn(int device) {
  static std::array<std::mutex, 64> turns;
  require(Code::unsupported, device >= 0 && device < static_cast<int>(turns.size()), "device number ", device, " is above ", turns.size() - 1);
  return std::unique_lock(turns[static_cast<std::size_t>(device)]);
}

}  // namespace engine::cuda
