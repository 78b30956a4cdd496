#include "export/gguf_logits.h"

#include <map>
#include <string>

#include "core/error.h"
#include "export/streamed_decoder.h"
#include "formats/gguf_blocks.h"

namespace engine {

std::pair<std::int64_t, std::int64_t> row_view(const GgufTensorPlan& plan, std::int64_t rows) {
  return plan.source.shape.size() == 1 ? std::pair{plan.source.shape[0], std::int64_t{1}} : std::pair{rows, plan.source.shape.back()};
}

const GgufTensor& planned_tensor(const GgufFile& file, const GgufTensorPlan& plan) {
  const GgufTensor& tensor = file.at(plan.name);
  require(Code::corrupt, tensor.shape == plan.source.shape, "the file's tensor ", plan.name, " has another shape than the model's ", plan.source.name);
  return tensor;
}

std::vector<float> source_logits(const Exec& ex, const ModelSpec& spec, const PlainWeights& weights, std::span<const std::uint32_t> ids, const OnWeights& on_weights,
                                 const CancelFlag* cancel) {
  const ReadRows read = [&](const ParameterSpec& parameter, std::int64_t first, std::int64_t count, float* out) {
    weights.read_rows(ex, weights.at(parameter.name), first, count, out);
    on_weights(count * parameter.shape.back());
  };
  return streamed_logits(ex, spec, read, ids, cancel);
}

std::vector<float> file_logits(const Exec& ex, const ModelSpec& spec, const GgufPlan& plan, const GgufFile& file, std::span<const std::uint32_t> ids,
                               const OnWeights& on_weights, const CancelFlag* cancel) {
  std::map<std::string, const GgufTensorPlan*> by_source;
  for (const GgufTensorPlan& tensor : plan.tensors) by_source.emplace(tensor.source.name, &tensor);
  const ReadRows read = [&](const ParameterSpec& parameter, std::int64_t first, std::int64_t count, float* out) {
    const GgufTensorPlan& tensor_plan = *by_source.at(parameter.name);
    const GgufTensor& tensor = planned_tensor(file, tensor_plan);
    const std::int64_t values = count * parameter.shape.back();
    const GgmlLayout layout = ggml_layout(tensor.type);
    ggml_dequantize(ex, tensor.type, tensor.data + first * parameter.shape.back() / layout.values * layout.bytes, values, out);
    const auto [view_rows, view_cols] = row_view(tensor_plan, count);
    tensor_plan.from_file(out, view_rows, view_cols);
    on_weights(values);
  };
  return streamed_logits(ex, spec, read, ids, cancel);
}

}  // namespace engine
