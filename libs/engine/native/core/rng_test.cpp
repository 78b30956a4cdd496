#include "core/rng.h"

#include "core/test.h"

namespace engine {

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
TEST("Philox4x32-10 gives the published answers") {
  CHECK(philox4x32(0, {0, 0, 0, 0}) == PhiloxBlock{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  CHECK(philox4x32(0xffffffffffffffffu, {0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}) ==
        PhiloxBlock{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  CHECK(philox4x32(0x299f31d0a4093822u, {0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}) ==
        PhiloxBlock{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST("uniform numbers lie in [0, 1) and average a half") {
  const Philox stream{3407, 1};
  double sum = 0;
  for (std::uint64_t i = 0; i < 100000; ++i) {
    const float u = stream.uniform(i);
    CHECK(u >= 0.0f && u < 1.0f);
    sum += u;
  }
  CHECK_CLOSE(sum / 100000, 0.5, 0.005);
}

TEST("streams of one seed differ") { CHECK(Philox{1, 2}.word(0) != Philox{1, 3}.word(0)); }

}  // namespace engine
