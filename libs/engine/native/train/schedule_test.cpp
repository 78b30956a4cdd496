#include "train/schedule.h"

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
