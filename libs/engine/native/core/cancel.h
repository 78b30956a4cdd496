// cancel.h: a flag the caller sets from any thread and long work looks at between its parts.
#pragma once

#include <atomic>

#include "core/error.h"

namespace engine {

struct CancelFlag {
  std::atomic<bool> requested{false};
};

inline bool is_cancelled(const CancelFlag* flag) noexcept { return flag != nullptr && flag->requested.load(std::memory_order_relaxed); }

// Throws cancelled when the flag is set. A null flag never is.
inline void check_cancelled(const CancelFlag* flag) {
  if (is_cancelled(flag)) fail(Code::cancelled, "the caller cancelled the work");
}

}  // namespace engine
