// The test frame's own comparisons.
#include <cstdint>

#include "core/test.h"

namespace engine {
namespace {

// Its value is gone with it.
class Owner {
 public:
  ~Owner() { value_ = -1; }
  const volatile int& value() const { return value_; }

 private:
  volatile int value_ = 7;
};

}  // namespace

TEST("a comparison sees what a temporary holds while it lives") { CHECK_EQ(Owner().value(), 7); }

TEST("whole numbers of different types are equal when their values are") {
  CHECK(test::equal(std::int64_t{5}, 5u));
  CHECK(!test::equal(-1, UINT32_MAX));
  CHECK(!test::equal(std::int64_t{-1}, UINT64_MAX));
  CHECK(!test::equal(std::uint8_t{255}, std::int8_t{-1}));
  CHECK(test::equal(true, 1));
}

}  // namespace engine
