// lora.cu: adapters beside the base products. Bytes: shrinks read x (or dy) once, 2 B a value, and the small operand from the second-level cache; gradients
// read both activations once, and write and read fp32 partial sums of r · C values for each piece of tokens.
#include <algorithm>

#include "core/error.h"
#include "cuda/ops/lora.h"
#include "cuda/ops/tile.h"
#include "cuda/runtime/launch.h"

namespace engine::cuda {
namespace {

// ---- the scratch's tail

constexpr unsigned kPackThreads = 256;

struct Parts {
  LoraPart part[kMostLoraParts];
  int count;
};

// Tail row j (blockIdx.x < tail): A's row of the part whose slot j is in, or zeros. Other blocks: 8 columns' worth of tail columns for one row n of W.
__global__ void __launch_bounds__(kPackThreads) pack_tail(Parts parts, View<bf16> scratch, std::int64_t outputs, std::int64_t inputs, std::int64_t tail) {
  if (blockIdx.x < tail) {
    const std::int64_t slot = blockIdx.x;
    const float* from = nullptr;
    for (int p = 0; p < parts.count; ++p) {
      const std::int64_t j = slot - parts.part[p].first_slot;
      if (j >= 0 && j < parts.part[p].rank) from = parts.part[p].a + j * inputs;
    }
    bf16* to = scratch.row(outputs + slot);
    for (std::int64_t k = threadIdx.x; k < inputs; k += kPackThreads) to[k] = narrow(from != nullptr ? from[k] : 0.0f);
    return;
  }
  const std::int64_t item = (std::int64_t{blockIdx.x} - tail) * kPackThreads + threadIdx.x, runs = tail / 8;
  const std::int64_t n = item / runs, slot = item % runs * 8;
  if (n >= outputs) return;
  float values[8] = {};
  for (int p = 0; p < parts.count; ++p) {
    const LoraPart& part = parts.part[p];
    const std::int64_t row = n - part.first_output;
    if (row < 0 || row >= part.outputs) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::int64_t j = slot + i - part.first_slot;
      if (j >= 0 && j < part.rank) values[i] = part.scale * part.b[row * part.rank + j];
    }
  }
  store16(scratch.row(n) + inputs + slot, pack8(values));
}

// ---- shrinks: 16 tokens a block, the sum split over 8 warps and joined in their order

constexpr int kShrinkWarps = 8, kShrinkThreads = kShrinkWarps * kWarp, kShrinkRows = 16, kShrinkColumns = 64, kShrinkDepth = 32;

// A lane reads 8 consecutive values of a row at once and deals them to the two products of 16 that they take part in: position 2t + i (and 2t + 8 + i)
// of a product holds value 8t + i (8t + 2 + i) of the 32, plus 4 in the second product. Any order serves, if both operands have it.
ENGINE_DEVICE int dealt(int product, int position) { return position % 8 / 2 * 8 + position % 2 + position / 8 * 2 + product * 4; }

ENGINE_DEVICE uint4 load_row16(View<const bf16> m, std::int64_t row, std::int64_t column) {
  if (row >= m.rows || column >= m.cols) return {0, 0, 0, 0};
  const uint4 v = load16(m.row(row) + column);
  if (column + 8 <= m.cols) return v;
  std::uint32_t words[4] = {v.x, v.y, v.z, v.w};
  for (int i = 0; i < 4; ++i) {
    const std::int64_t left = m.cols - column - 2 * i;
    words[i] = left >= 2 ? words[i] : left == 1 ? words[i] & 0xffffu : 0;
  }
  return {words[0], words[1], words[2], words[3]};
}

// kTransposed: the small operand is [depth, r], read through shared memory; else [r, depth], read as x is.
template <int kTiles, bool kTransposed>
__global__ void __launch_bounds__(kShrinkThreads) shrink(View<const bf16> x, View<const bf16> small, View<bf16> low) {
  using Staged = Tile<kShrinkDepth, 16 * kTiles>;
  auto* shared = static_cast<unsigned char*>(block_shared());
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4;
  const std::int64_t first_row = std::int64_t{blockIdx.x} * kShrinkRows, first_column = std::int64_t{blockIdx.y} * kShrinkColumns;
  const Staged staged[2] = {{reinterpret_cast<bf16*>(shared) + (2 * warp) * Staged::kValues}, {reinterpret_cast<bf16*>(shared) + (2 * warp + 1) * Staged::kValues}};
  constexpr std::int64_t kStep = kShrinkWarps * kShrinkDepth;
  float sums[2 * kTiles][4] = {};
  std::int64_t k = std::int64_t{warp} * kShrinkDepth;
  if (kTransposed && k < x.cols) staged[0].template load<kWarp>(small, k, first_column, lane);
  if (kTransposed) copy_async_commit();
  for (int turn = 0; k < x.cols; k += kStep, turn ^= 1) {
    if (kTransposed) {
      if (k + kStep < x.cols) staged[turn ^ 1].template load<kWarp>(small, k + kStep, first_column, lane);
      copy_async_commit();
    }
    const uint4 upper = load_row16(x, first_row + g, k + 8 * t), lower = load_row16(x, first_row + 8 + g, k + 8 * t);
    const std::uint32_t a[2][4] = {{upper.x, lower.x, upper.y, lower.y}, {upper.z, lower.z, upper.w, lower.w}};
    if constexpr (kTransposed) {
      copy_async_wait<1>();
      sync_warp();
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
#pragma unroll
        for (int product = 0; product < 2; ++product) {
          std::uint32_t b[4];
          load_matrix4<true>(b, staged[turn].at(dealt(product, lane % 16), 16 * n + lane / 16 * 8));
          mma(sums[2 * n], a[product], b[0], b[1]);
          mma(sums[2 * n + 1], a[product], b[2], b[3]);
        }
      sync_warp();  // the other half may now be overwritten
    } else {
#pragma unroll
      for (int n = 0; n < 2 * kTiles; ++n) {
        const uint4 b = load_row16(small, first_column + 8 * n + g, k + 8 * t);
        mma(sums[n], a[0], b.x, b.y);
        mma(sums[n], a[1], b.z, b.w);
      }
    }
  }
  copy_async_wait<0>();
  __syncthreads();
  auto* partial = reinterpret_cast<float*>(shared);  // [warp][16][16·kTiles], over what was staged
  constexpr int kWidth = 16 * kTiles;
#pragma unroll
  for (int n = 0; n < 2 * kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[(warp * kShrinkRows + g + i / 2 * 8) * kWidth + 8 * n + 2 * t + i % 2] = sums[n][i];
  __syncthreads();
  for (int i = thread; i < kShrinkRows * kWidth; i += kShrinkThreads) {
    float total = 0;
    for (int w = 0; w < kShrinkWarps; ++w) total += partial[w * kShrinkRows * kWidth + i];
    const std::int64_t row = first_row + i / kWidth, column = first_column + i % kWidth;
    if (row < low.rows && column < low.cols) low.row(row)[column] = narrow(total);
  }
}

template <int kTiles, bool kTransposed>
void launch_shrink(View<const bf16> x, View<const bf16> small, View<bf16> low, cudaStream_t stream) {
  constexpr std::int64_t kStaged = kTransposed ? std::int64_t{2} * kShrinkWarps * Tile<kShrinkDepth, 16 * kTiles>::kValues * 2 : 0;
  constexpr std::int64_t kPartial = std::int64_t{4} * kShrinkWarps * kShrinkRows * 16 * kTiles;
  const dim3 grid(blocks(ceil_div(x.rows, kShrinkRows)), blocks(ceil_div(low.cols, kShrinkColumns)));
  launch(stream, grid, kShrinkThreads, std::max(kStaged, kPartial), shrink<kTiles, kTransposed>, x, small, low);
}

template <bool kTransposed>
void run_shrink(View<const bf16> x, View<const bf16> small, View<bf16> low, cudaStream_t stream) {
  require(low.rows == x.rows && low.cols <= 256, "a shrink of ", x.rows, "x", x.cols, " into ", low.rows, "x", low.cols, "; ranks go up to 256");
  if (low.cols <= 16)
    launch_shrink<1, kTransposed>(x, small, low, stream);
  else if (low.cols <= 32)
    launch_shrink<2, kTransposed>(x, small, low, stream);
  else if (low.cols <= 48)
    launch_shrink<3, kTransposed>(x, small, low, stream);
  else
    launch_shrink<4, kTransposed>(x, small, low, stream);
}

// ---- gradients: [64 of r] × [128 of C] a block of 4 warps, over one piece of the tokens

constexpr int kGradThreads = 128, kGradRows = 64, kGradColumns = 128, kGradDepth = 32, kGradStages = 3;

constexpr std::int64_t piece_tokens(std::int64_t tokens) { return tokens <= 1024 ? 128 : 512; }

struct Gradients {
  LoraGradient part[kMostLoraParts];
  std::int64_t partial[kMostLoraParts];  // where a part's sums begin, in values: [piece][rank][C]
};

__global__ void __launch_bounds__(kGradThreads) gradient_pieces(Gradients all, float* partial, int most_row_tiles) {
  using Low = Tile<kGradDepth, kGradRows>;
  using Wide = Tile<kGradDepth, kGradColumns>;
  const int part = static_cast<int>(blockIdx.z) / most_row_tiles;
  const LoraGradient& gradient = all.part[part];
  const std::int64_t first_low = std::int64_t{static_cast<int>(blockIdx.z) % most_row_tiles} * kGradRows, first_column = std::int64_t{blockIdx.x} * kGradColumns;
  if (first_low >= gradient.low.cols || first_column >= gradient.wide.cols) return;
  auto* shared = static_cast<bf16*>(block_shared());
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t tokens = gradient.low.rows, length = piece_tokens(tokens);
  const std::int64_t first = std::int64_t{blockIdx.y} * length, last = first + length < tokens ? first + length : tokens;
  const auto low_tile = [&](int stage) { return Low{shared + stage * (Low::kValues + Wide::kValues)}; };
  const auto wide_tile = [&](int stage) { return Wide{shared + stage * (Low::kValues + Wide::kValues) + Low::kValues}; };
  const std::int64_t steps = (last - first + kGradDepth - 1) / kGradDepth;
  const auto fetch = [&](std::int64_t step) {
    if (step < steps) {
      const std::int64_t row = first + step * kGradDepth;  // pieces are whole steps, so only the last one of all ends short
      low_tile(static_cast<int>(step % kGradStages)).template load<kGradThreads>(gradient.low, row, first_low, thread);
      wide_tile(static_cast<int>(step % kGradStages)).template load<kGradThreads>(gradient.wide, row, first_column, thread);
    }
    copy_async_commit();
  };
  const int row_tiles = static_cast<int>(gradient.low.cols - first_low < kGradRows ? (gradient.low.cols - first_low + 15) / 16 : kGradRows / 16);
  float sums[kGradRows / 16][4][4] = {};
  for (int s = 0; s < kGradStages - 1; ++s) fetch(s);
  for (std::int64_t step = 0; step < steps; ++step) {
    copy_async_wait<kGradStages - 2>();
    __syncthreads();
    fetch(step + kGradStages - 1);
    const Low from_low = low_tile(static_cast<int>(step % kGradStages));
    const Wide from_wide = wide_tile(static_cast<int>(step % kGradStages));
#pragma unroll
    for (int k = 0; k < kGradDepth; k += 16) {
      std::uint32_t b[2][4];
      load_b_transposed(b[0], from_wide, 32 * warp, k);
      load_b_transposed(b[1], from_wide, 32 * warp + 16, k);
#pragma unroll
      for (int i = 0; i < kGradRows / 16; ++i) {
        if (i >= row_tiles) break;
        std::uint32_t a[4];
        load_a_transposed(a, from_low, 16 * i, k);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma(sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  copy_async_wait<0>();
  float* out = partial + all.partial[part] + std::int64_t{blockIdx.y} * gradient.low.cols * gradient.wide.cols;
#pragma unroll
  for (int i = 0; i < kGradRows / 16; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const std::int64_t row = first_low + 16 * i + lane / 4 + e / 2 * 8, column = first_column + 32 * warp + 8 * j + lane % 4 * 2 + e % 2;
        if (row < gradient.low.cols && column < gradient.wide.cols) out[row * gradient.wide.cols + column] = sums[i][j][e];
      }
}

constexpr unsigned kAddThreads = 256;

// grad += scale · Σ over pieces, in order. One thread for each value, in the order of the partial sums (reads are the many).
__global__ void __launch_bounds__(kAddThreads) add_gradient_pieces(Gradients all, const float* partial, std::int64_t pieces) {
  const LoraGradient& gradient = all.part[blockIdx.y];
  const std::int64_t columns = gradient.wide.cols, values = gradient.low.cols * columns, i = std::int64_t{blockIdx.x} * kAddThreads + threadIdx.x;
  if (i >= values) return;
  const float* from = partial + all.partial[blockIdx.y] + i;
  float total = 0;
  for (std::int64_t piece = 0; piece < pieces; ++piece) total += from[piece * values];
  float* to = gradient.of_b ? gradient.grad + i % columns * gradient.low.cols + i / columns : gradient.grad + i;
  *to += gradient.scale * total;
}

}  // namespace

void lora_pack(std::span<const LoraPart> parts, View<bf16> scratch, std::int64_t tail, cudaStream_t stream) {
  require(!parts.empty() && static_cast<std::int64_t>(parts.size()) <= kMostLoraParts, parts.size(), " adapters in one scratch; it takes 1 to ", kMostLoraParts);
  require(tail % kSlot == 0 && tail > 0 && scratch.rows > tail && scratch.cols > tail && (scratch.cols - tail) % 8 == 0, "a tail of ", tail, " in a scratch of ",
          scratch.rows, "x", scratch.cols);
  Parts all{};
  all.count = static_cast<int>(parts.size());
  const std::int64_t outputs = scratch.rows - tail, inputs = scratch.cols - tail;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const LoraPart& p = parts[i];
    require(p.rank > 0 && p.first_slot % kSlot == 0 && p.first_slot + slot_columns(p.rank) <= tail, "rank ", p.rank, " at column ", p.first_slot, " of a tail of ", tail);
    require(p.first_output >= 0 && p.first_output + p.outputs <= outputs, "outputs ", p.first_output, "+", p.outputs, " of ", outputs);
    all.part[i] = p;
  }
  launch(stream, blocks(tail + ceil_div(outputs * (tail / 8), kPackThreads)), kPackThreads, 0, pack_tail, all, scratch, outputs, inputs, tail);
}

void lora_shrink(View<const bf16> x, View<const bf16> a, View<bf16> low, cudaStream_t stream) {
  require(a.rows == low.cols && a.cols == x.cols, "x is ", x.rows, "x", x.cols, ", A ", a.rows, "x", a.cols, ", low ", low.rows, "x", low.cols);
  run_shrink<false>(x, a, low, stream);
}

void lora_shrink_backward(View<const bf16> dy, View<const bf16> sb, View<bf16> dlow, cudaStream_t stream) {
  require(sb.cols == dlow.cols && sb.rows == dy.cols, "dy is ", dy.rows, "x", dy.cols, ", sB ", sb.rows, "x", sb.cols, ", dlow ", dlow.rows, "x", dlow.cols);
  run_shrink<true>(dy, sb, dlow, stream);
}

std::int64_t lora_gradient_workspace(std::int64_t tokens, std::int64_t parts, std::int64_t rank, std::int64_t columns) {
  // Fewer tokens may come in more pieces: 1024 in eight of 128, 1025 in three of 512.
  const std::int64_t pieces = tokens <= 1024 ? ceil_div(tokens, 128) : std::max<std::int64_t>(8, ceil_div(tokens, 512));
  return pieces * parts * rank * columns * static_cast<std::int64_t>(sizeof(float));
}

void lora_gradients(std::span<const LoraGradient> parts, void* workspace, std::int64_t workspace_bytes, cudaStream_t stream) {
  require(!parts.empty() && static_cast<std::int64_t>(parts.size()) <= kMostLoraParts, parts.size(), " gradients in one call; it takes 1 to ", kMostLoraParts);
  Gradients all{};
  const std::int64_t tokens = parts[0].low.rows, pieces = ceil_div(tokens, piece_tokens(tokens));
  std::int64_t columns = 0, rank = 0, used = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const LoraGradient& p = parts[i];
    require(p.low.rows == tokens && p.wide.rows == tokens && p.low.cols > 0, "gradient ", i, " sums over ", p.low.rows, " and ", p.wide.rows, " tokens, not ", tokens);
    all.part[i] = p;
    all.partial[i] = used;
    used += pieces * p.low.cols * p.wide.cols;
    columns = std::max(columns, p.wide.cols);
    rank = std::max(rank, p.low.cols);
  }
  if (tokens == 0 || columns == 0) return;
  require(used * static_cast<std::int64_t>(sizeof(float)) <= workspace_bytes, "the gradients need ", used * 4, " bytes of workspace; ", workspace_bytes, " are given");
  const auto row_tiles = static_cast<int>(ceil_div(rank, kGradRows));
  const auto count = static_cast<std::int64_t>(parts.size());
  constexpr std::int64_t kShared = std::int64_t{kGradStages} * (Tile<kGradDepth, kGradRows>::kValues + Tile<kGradDepth, kGradColumns>::kValues) * 2;
  const dim3 grid(blocks(ceil_div(columns, kGradColumns)), blocks(pieces), blocks(count * row_tiles));
  launch(stream, grid, kGradThreads, kShared, gradient_pieces, all, static_cast<float*>(workspace), row_tiles);
  launch(stream, dim3(blocks(ceil_div(rank * columns, kAddThreads)), blocks(count)), kAddThreads, 0, add_gradient_pieces, all, static_cast<const float*>(workspace),
         pieces);
}

}  // namespace engine::cuda
