// attention_rows.h: inner loops of the tiled attention, for the rows of one query block against one key block.
#pragma once

#include <cstdint>

namespace engine {

// What a row has gathered from the key blocks so far.
struct RunningSoftmax {
  float largest;  // of the scores; -infinity before the first
  float sum;      // Σ exp(s - largest)
};

// Scores s[r * stride + j] of `rows` queries and `width` keys. Row r sees the keys j <= diagonal + r, and with a window (0: none) only the
// last `window` of them. stride is a multiple of 16, so whole vectors may be touched beyond width.
struct ScoreBlock {
  std::int64_t rows, width, stride;
  std::int64_t diagonal;
  std::int64_t window;
  float softcap;
};

struct AttentionRows {
  // s: replaced by p = exp(cap(s) - largest), 0 where unseen, each row's `largest` updated first; rescale[r]: what the row's earlier
  // results must be multiplied by.
  void (*probabilities)(const ScoreBlock& block, float* s, RunningSoftmax* running, float* rescale);
  // s: replaced by p = exp(cap(s) - lse[r]); dp: replaced by ds = p · (dp - delta[r]) · cap' · scale; both 0 where unseen.
  void (*gradients)(const ScoreBlock& block, float* s, float* dp, const float* lse, const float* delta, float scale);
  float (*dot)(const float* a, const float* b, std::int64_t n);
};

extern const AttentionRows attention_rows_avx2, attention_rows_avx512;

}  // namespace engine
