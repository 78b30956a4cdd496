// attention_rows.h: inner loops of the tiled attention for one query row of one key block.
//   A row has `width` columns of which the keys in [first, last) are seen; the others get 0. first >= last: none is.
#pragma once

#include <cstdint>

namespace engine {

// What a row has gathered from the key blocks so far.
struct RunningSoftmax {
  float largest;  // of the scores; -infinity before the first
  float sum;      // Σ exp(s - largest)
};

struct AttentionRows {
  // s: scores, replaced by p = exp(cap(s) - largest), largest updated first. Returns what earlier results must be multiplied by.
  float (*probabilities)(float* s, std::int64_t width, std::int64_t first, std::int64_t last, float softcap, RunningSoftmax* running);
  // s: scores, replaced by p = exp(cap(s) - lse); dp: replaced by ds = p · (dp - delta) · cap' · scale.
  void (*gradients)(float* s, float* dp, std::int64_t width, std::int64_t first, std::int64_t last, float softcap, float lse, float delta, float scale);
  float (*dot)(const float* a, const float* b, std::int64_t n);
};

extern const AttentionRows attention_rows_avx2, attention_rows_avx512;

}  // namespace engine
