// device.h: the devices of a machine, and how a caller names one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace engine {

enum class DeviceKind : std::uint8_t { cpu, cuda };
std::string_view device_kind_name(DeviceKind kind) noexcept;  // "cpu", "cuda"

struct DeviceInfo {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  std::string name;
  std::string isa;                 // best instruction set in use ("avx512"), or the GPU's architecture ("sm_90")
  std::int64_t threads = 0;        // worth starting; on a GPU: multiprocessors
  std::int64_t memory_bytes = 0;   // in all
};

// What a caller asked for. `automatic` leaves the choice to whoever computes: a GPU where that can do the work, else the CPU.
struct DeviceChoice {
  bool automatic = true;
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
};

// "auto", "cpu", "cpu:0", "cuda" (the first), "cuda:N". Throws invalid for anything else.
DeviceChoice parse_device(std::string_view name);

}  // namespace engine
