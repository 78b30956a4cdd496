#include "core/version.h"

#ifndef ENGINE_BUILD_DIGEST
#define ENGINE_BUILD_DIGEST "dev"
#endif

namespace engine {

const char* engine_version() noexcept { return "0.1.0+" ENGINE_BUILD_DIGEST; }

}  // namespace engine
