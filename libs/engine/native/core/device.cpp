#include "core/device.h"

#include <charconv>

#include "core/error.h"

namespace engine {

std::string_view device_kind_name(DeviceKind kind) noexcept { return kind == DeviceKind::cuda ? "cuda" : "cpu"; }

DeviceChoice parse_device(std::string_view name) {
  if (name == "auto") return {};
  const std::size_t colon = name.find(':');
  const std::string_view kind = name.substr(0, colon);
  DeviceChoice choice{false, kind == "cuda" ? DeviceKind::cuda : DeviceKind::cpu, 0};
  bool valid = kind == "cpu" || kind == "cuda";
  if (valid && colon != std::string_view::npos) {
    const std::string_view digits = name.substr(colon + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), choice.index);
    valid = error == std::errc{} && end == digits.data() + digits.size() && choice.index >= 0 && (choice.kind == DeviceKind::cuda || choice.index == 0);
  }
  require(valid, "the device is \"", name.substr(0, 40), "\"; use auto, cpu, or a device that listDevices names, such as cuda:0");
  return choice;
}

}  // namespace engine
