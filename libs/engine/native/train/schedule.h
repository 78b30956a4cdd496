// schedule.h: the learning rate of each optimizer step, by transformers' definitions (get_*_schedule_with_warmup).
//   s = optimizer steps already made (0 for the first), w = warm-up steps, n = total steps, all at the peak rate r:
//     s < w       r · s / max(1, w)                                  so that with warm-up the first step's rate is 0
//     linear      r · max(0, (n − s) / max(1, n − w))
//     cosine      r · max(0, ½ (1 + cos(π · (s − w) / max(1, n − w))))
//     constant    r
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace engine {

enum class ScheduleKind : std::uint8_t { linear, cosine, constant };

struct Schedule {
  ScheduleKind kind = ScheduleKind::linear;
  std::int64_t warmup_steps = 0;
  std::int64_t total_steps = 1;
  double learning_rate = 0;
};

inline double learning_rate_at(const Schedule& schedule, std::int64_t step) {
  const auto s = static_cast<double>(step), w = static_cast<double>(schedule.warmup_steps), n = static_cast<double>(schedule.total_steps);
  if (step < schedule.warmup_steps) return schedule.learning_rate * (s / std::max(1.0, w));
  switch (schedule.kind) {
    case ScheduleKind::linear: return schedule.learning_rate * std::max(0.0, (n - s) / std::max(1.0, n - w));
    case ScheduleKind::cosine:
      return schedule.learning_rate * std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * ((s - w) / std::max(1.0, n - w)))));
    case ScheduleKind::constant: return schedule.learning_rate;
  }
  return 0;
}

}  // namespace engine
