#include "core/device.h"

#include "core/test.h"

using namespace engine;

TEST("a device is named by its kind and number") {
  CHECK(parse_device("auto").automatic);
  for (const char* cpu : {"cpu", "cpu:0"}) {
    const DeviceChoice choice = parse_device(cpu);
    CHECK(!choice.automatic && choice.kind == DeviceKind::cpu && choice.index == 0);
  }
  CHECK(!parse_device("cuda").automatic && parse_device("cuda").kind == DeviceKind::cuda);
  CHECK_EQ(parse_device("cuda:3").index, 3);
}

TEST("a device that is no device is refused") {
  for (const char* name : {"", "gpu", "cpu:1", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "CUDA", "cuda:0 "}) CHECK_THROWS(invalid, parse_device(name));
}
