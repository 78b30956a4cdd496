#include "core/code_tables.h"

#include "core/json.h"
#include "core/test.h"

namespace engine {
namespace {

template <std::size_t N>
void check_table(const Json& tables, const char* name, const std::array<float, N>& ours) {
  const Json& golden = tables.at(name);
  CHECK_EQ(golden.size(), N);
  for (std::size_t i = 0; i < N && i < golden.size(); ++i) CHECK_EQ(golden[i].get<float>(), ours[i]);
}

}  // namespace

TEST("the code books equal those of bitsandbytes") {
  const Json tables = read_json(test::shared_dir() / "golden/bnb_code_tables.json");
  check_table(tables, "nf4", kNf4);
  check_table(tables, "dynamic_map_signed_8bit", kDynamicSigned);
  check_table(tables, "dynamic_map_unsigned_8bit", kDynamicUnsigned);
}

TEST("each NF4 threshold lies between its two codes") {
  for (std::size_t i = 0; i < kNf4Thresholds.size(); ++i) CHECK(kNf4[i] < kNf4Thresholds[i] && kNf4Thresholds[i] < kNf4[i + 1]);
}

TEST("the dynamic maps ascend and hold zero") {
  for (std::size_t i = 1; i < 256; ++i) {
    CHECK(kDynamicSigned[i - 1] < kDynamicSigned[i]);
    CHECK(kDynamicUnsigned[i - 1] < kDynamicUnsigned[i]);
  }
  CHECK_EQ(kDynamicSigned[127], 0.0f);
  CHECK_EQ(kDynamicUnsigned[0], 0.0f);
}

}  // namespace engine
