#include "train/batch.h"

#include "core/error.h"
#include "model/forward.h"

namespace engine {

LabelledBatch label_batch(const ModelSpec& spec, const MicroBatch& micro) {
  LabelledBatch batch;
  batch.ids = micro.input_ids;
  batch.offsets.assign(micro.row_offsets.begin(), micro.row_offsets.end());
  require(!micro.input_ids.empty(), "a micro-batch has no tokens");
  require(micro.loss_mask.size() == micro.input_ids.size(), "a micro-batch has ", micro.input_ids.size(), " tokens but a loss mask of ",
          micro.loss_mask.size());
  check_packed(spec, batch.packed());
  for (std::size_t i = 0; i < micro.loss_mask.size(); ++i)
    require(micro.loss_mask[i] <= 1, "the loss mask at position ", i, " is ", int{micro.loss_mask[i]}, "; use 0 or 1");
  for (std::size_t row = 0; row + 1 < batch.offsets.size(); ++row)
    for (std::int64_t i = batch.offsets[row]; i + 1 < batch.offsets[row + 1]; ++i)
      if (micro.loss_mask[static_cast<std::size_t>(i) + 1] != 0) {
        batch.positions.push_back(i);
        batch.targets.push_back(micro.input_ids[static_cast<std::size_t>(i) + 1]);
      }
  return batch;
}

}  // namespace engine
