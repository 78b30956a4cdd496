// gguf_verify.h: whether a GGUF file still is what was exported: its numbers against those of its source, and against what was written into it then.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "core/cancel.h"
#include "core/exec.h"
#include "export/gguf_parity.h"

namespace engine {

struct VerifiedGguf {
  std::optional<GgufParity> recorded;        // medmesh.parity.… of the file; none when another program wrote it
  GgufParity measured;                       // the same figures, computed anew from the file and its source
  std::vector<std::vector<float>> logprobs;  // by the file's numbers, of each sequence: log p(ids[i + 1] | ids[..i]), T − 1
};

// `sequences`: of 2 tokens or more each. Throws invalid for others, for ids outside the vocabulary and for a file of another architecture; corrupt for a
// broken file or tensors that are missing or of another shape; and what export_gguf throws for its source.
VerifiedGguf verify_gguf(const Exec& ex, const std::filesystem::path& model_dir, const std::optional<std::filesystem::path>& adapter_dir,
                         const std::filesystem::path& file, std::span<const std::vector<std::uint32_t>> sequences, const CancelFlag* cancel = nullptr);

}  // namespace engine
