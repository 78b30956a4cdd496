// random_base.h: random weights of a shape, doubly quantized, that never touch a file. Every layer shows the same memory here, and has its own on a device.
#pragma once

#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "core/bf16.h"
#include "model/spec.h"
#include "model/weights.h"

namespace engine::bench {

class RandomBase {
 public:
  // Of bench_model.h, with a head of its own. Throws invalid for another name.
  explicit RandomBase(const std::string& shape);
  RandomBase(const RandomBase&) = delete;
  RandomBase& operator=(const RandomBase&) = delete;

  ModelSpec spec;
  DecoderWeights weights;

 private:
  Matrix quantized(Projection projection, std::mt19937& random);

  std::vector<bf16> table_;
  std::vector<float> norm_, bias_;
  std::deque<std::vector<std::uint8_t>> bytes_;  // addresses stay while it grows
  std::vector<std::vector<float>> floats_;
};

}  // namespace engine::bench
