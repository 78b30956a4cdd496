// version.h: what produced a result.
#pragma once

namespace engine {

// Semantic version and the digest of the sources it was built from: "0.1.0+1a2b3c4d5e6f".
const char* engine_version() noexcept;

}  // namespace engine
