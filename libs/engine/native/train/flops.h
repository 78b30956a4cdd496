// flops.h: the arithmetic that a step of training cannot do without, which a run's speed is judged by.
#pragma once

#include "model/spec.h"
#include "train/batch.h"

namespace engine {

// Multiplications and additions of one forward and backward over a micro-batch: the products of the blocks for every token and of the head for every
// labelled one, forward and for the gradient of their inputs (with `all_weights` for that of the weights too), and attention over the pairs that its mask
// lets see each other, 2.5 times as much backward as forward. What is computed twice to save memory, adapters (about 1 %), norms and the optimizer are not counted.
double training_flops(const ModelSpec& spec, const LabelledBatch& batch, bool all_weights);

}  // namespace engine
