#include "ops/decode.h"

#include <cstring>

#include "core/bf16.h"
#include "core/error.h"
#include "ops/decode_rows.h"
#include "ops/dispatch.h"
#include "ops/nf4.h"
#include "ops/nf4_rows.h"

namespace engine {
namespace {

void widen_bf16(const void* src, std::int64_t n, float* out) { to_f32(Dtype::bf16, src, n, out); }
void widen_f16(const void* src, std::int64_t n, float* out) { to_f32(Dtype::f16, src, n, out); }

void round_bf16(const float* x, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = round_to_bf16(x[i]);
}

}  // namespace

const DecodeRows decode_rows_scalar = {widen_bf16, widen_f16, round_bf16};

void require_weight(const Matrix& w) {
  require(w.rows >= 0 && w.cols >= 0, "a weight of ", w.rows, " by ", w.cols);
  require(w.rows == 0 || w.cols == 0 || w.data != nullptr, "a weight of ", w.rows, " by ", w.cols, " has no data");
  require(Code::unsupported, is_float_weight(w.dtype) || w.dtype == Dtype::nf4, "a weight of type ", dtype_name(w.dtype),
          "; use f32, f16, bf16 or nf4");
  if (w.dtype != Dtype::nf4) return;
  const Nf4Scales& s = w.nf4;
  require(s.absmax != nullptr || (s.codes != nullptr && s.nested_map != nullptr && s.nested_absmax != nullptr),
          "an nf4 weight has neither absmax nor complete double-quantized scales");
}

void decode_weight(Isa isa, const Matrix& w, std::int64_t first, std::int64_t count, float* out) {
  const auto* bytes = static_cast<const std::uint8_t*>(w.data);
  switch (w.dtype) {
    case Dtype::f32: to_f32(Dtype::f32, bytes + first * 4, count, out); return;
    case Dtype::bf16: ENGINE_ROWS(isa, decode_rows).widen_bf16(bytes + first * 2, count, out); return;
    case Dtype::f16: ENGINE_ROWS(isa, decode_rows).widen_f16(bytes + first * 2, count, out); return;
    case Dtype::nf4: break;
    default: require_weight(w);
  }
  // Whole blocks by the fast kernel. A run that begins or ends inside a block takes its share of the decoded whole; only the
  // tensor's last block may be shorter than 64, and is decoded one value at a time.
  const Nf4Rows& rows = ENGINE_ROWS(isa, nf4_rows);
  const std::int64_t last = first + count, whole_end = w.rows * w.cols / kNf4Block * kNf4Block;
  for (std::int64_t at = first; at < last;) {
    if (at >= whole_end) {
      dequantize_nf4(bytes, w.nf4, at, last - at, out + (at - first));
      return;
    }
    const std::int64_t block = at / kNf4Block, begin = block * kNf4Block, end = begin + kNf4Block < last ? begin + kNf4Block : last;
    if (at == begin && end == begin + kNf4Block) {
      rows.decode_block(bytes + begin / 2, nf4_scale(w.nf4, block), out + (at - first));
    } else {
      float values[kNf4Block];
      rows.decode_block(bytes + begin / 2, nf4_scale(w.nf4, block), values);
      std::memcpy(out + (at - first), values + (at - begin), static_cast<std::size_t>(end - at) * 4);
    }
    at = end;
  }
}

}  // namespace engine
