#include <string>

#include "core/error.h"
#include "ops/decode.h"
#include "ops/elementwise_rows.h"
#include "ops/dispatch.h"
#include "ops/embed.h"

namespace engine {
namespace {

void require_ids(std::span<const std::uint32_t> ids, std::int64_t vocabulary, ConstRows x, std::int64_t width) {
  require(x.rows == static_cast<std::int64_t>(ids.size()) && x.cols == width, "embed: ", ids.size(), " ids of width ", width, " do not fit ", x.rows,
          "x", x.cols);
  for (const std::uint32_t id : ids) require(id < static_cast<std::uint64_t>(vocabulary), "a token id is beyond the vocabulary of ", vocabulary);
}

}  // namespace

void embed_forward(const Exec& ex, const Matrix& table, std::span<const std::uint32_t> ids, float scale, Rows out) {
  require_weight(table);
  require_ids(ids, table.rows, out, table.cols);
  const ElementwiseRows& rows = ENGINE_ROWS(ex.isa, elementwise_rows);
  ex.pool.for_ranges(out.rows, 16384 / (table.cols + 1) + 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = first; t < last; ++t) {
      decode_weight(ex.isa, table, std::int64_t{ids[static_cast<std::size_t>(t)]} * table.cols, table.cols, out.row(t));
      if (scale != 1.0f) rows.scale(out.row(t), scale, table.cols, out.row(t));
    }
  });
}

void embed_backward(const Exec& ex, std::span<const std::uint32_t> ids, ConstRows dout, float scale, Rows dtable) {
  require_ids(ids, dtable.rows, dout, dtable.cols);
  if (ids.empty() || dtable.cols == 0) return;
  const ElementwiseRows& rows = ENGINE_ROWS(ex.isa, elementwise_rows);
  // Each part owns columns, in whole cache lines, and adds every token to them in order.
  constexpr std::int64_t kLine = 16;
  const std::int64_t lines = (dtable.cols + kLine - 1) / kLine;
  ex.pool.for_ranges(lines, 16384 / (dout.rows * kLine) + 1, [&](std::int64_t first, std::int64_t last) {
    const std::int64_t begin = first * kLine, end = last * kLine < dtable.cols ? last * kLine : dtable.cols;
    for (std::int64_t t = 0; t < dout.rows; ++t)
      rows.add_scaled(dout.row(t) + begin, scale, end - begin, dtable.row(ids[static_cast<std::size_t>(t)]) + begin);
  });
}

}  // namespace engine
