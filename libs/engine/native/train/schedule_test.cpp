#include "train/schedule.h"

#include <filesystem>

#include "core/json.h"
#include "core/test.h"

using namespace engine;

TEST("a linear schedule rises from zero over the warm-up and falls to zero at the last step") {
  const Schedule schedule{ScheduleKind::linear, 5, 60, 2e-4};
  CHECK_EQ(learning_rate_at(schedule, 0), 0.0);
  CHECK_CLOSE(learning_rate_at(schedule, 1), 4e-5, 1e-12);
  CHECK_CLOSE(learning_rate_at(schedule, 5), 2e-4, 1e-12);
  CHECK_CLOSE(learning_rate_at(schedule, 59), 2e-4 / 55, 1e-12);
  CHECK_EQ(learning_rate_at(schedule, 60), 0.0);
  CHECK_EQ(learning_rate_at(schedule, 1000), 0.0);
}

TEST("a cosine schedule is at half its peak midway between warm-up and end") {
  const Schedule schedule{ScheduleKind::cosine, 10, 30, 1.0};
  CHECK_CLOSE(learning_rate_at(schedule, 5), 0.5, 1e-12);
  CHECK_CLOSE(learning_rate_at(schedule, 10), 1.0, 1e-12);
  CHECK_CLOSE(learning_rate_at(schedule, 20), 0.5, 1e-12);
  CHECK_CLOSE(learning_rate_at(schedule, 30), 0.0, 1e-12);
}

TEST("a constant schedule without warm-up starts at its peak and stays there") {
  const Schedule schedule{ScheduleKind::constant, 0, 10, 3e-4};
  CHECK_EQ(learning_rate_at(schedule, 0), 3e-4);
  CHECK_EQ(learning_rate_at(schedule, 500), 3e-4);
}

TEST("every schedule gives transformers' learning rate at every step, with and without warm-up and beyond the end") {
  const Json golden = read_json(std::filesystem::path(ENGINE_REPOSITORY_DIR) / "libs/engine/golden/schedules.json");
  CHECK_EQ(golden.at("schedules").size(), 12u);
  for (const Json& c : golden.at("schedules")) {
    const std::string kind = c.at("kind");
    const Schedule schedule{kind == "linear" ? ScheduleKind::linear : kind == "cosine" ? ScheduleKind::cosine : ScheduleKind::constant,
                            c.at("warmup_steps"), c.at("total_steps"), c.at("learning_rate")};
    for (std::size_t step = 0; step < c.at("rates").size(); ++step) {
      const double expected = c.at("rates").at(step), rate = learning_rate_at(schedule, static_cast<std::int64_t>(step));
      // The cosine itself may differ by its last bits from one mathematics library to the next.
      if (!(std::abs(rate - expected) <= 1e-15 * c.at("learning_rate").get<double>()))
        test::report_failure(__FILE__, __LINE__, text(kind, " with ", schedule.warmup_steps, " of ", schedule.total_steps, ": step ", step, " has ", rate, ", not ", expected));
    }
  }
}
