// gguf_logits.h: the two sides of a parity figure: the logits of a model folder's numbers, and of a GGUF file's taken back to the folder's form. Both in
//   fp32, one layer at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "core/cancel.h"
#include "core/exec.h"
#include "export/gguf_plan.h"
#include "formats/gguf_file.h"
#include "formats/plain_weights.h"

namespace engine {

// Called with the number of weights that have just been read.
using OnWeights = std::function<void(std::int64_t values)>;

// Rows and columns as the plan permutes them: a vector as [n, 1], though it is one row to whoever reads it.
std::pair<std::int64_t, std::int64_t> row_view(const GgufTensorPlan& plan, std::int64_t rows);

// [T, vocab] of the folder's weights, an adapter's update included.
std::vector<float> source_logits(const Exec& ex, const ModelSpec& spec, const PlainWeights& weights, std::span<const std::uint32_t> ids, const OnWeights& on_weights,
                                 const CancelFlag* cancel);

// The same of the file's. Throws corrupt when a tensor of the plan is missing or has another shape.
std::vector<float> file_logits(const Exec& ex, const ModelSpec& spec, const GgufPlan& plan, const GgufFile& file, std::span<const std::uint32_t> ids,
                               const OnWeights& on_weights, const CancelFlag* cancel);

// The file's tensor of this plan. Throws corrupt when it is missing or has another shape.
const GgufTensor& planned_tensor(const GgufFile& file, const GgufTensorPlan& plan);

}  // namespace engine
