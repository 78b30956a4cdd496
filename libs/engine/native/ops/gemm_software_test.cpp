// The matrix kernels for AMX and AVX512-BF16, run over the definitions of their instructions.
#include <algorithm>
#include <cmath>

#include "ops/gemm_blocked.h"
#include "ops/linear.h"
#include "ops/op_test.h"

#ifdef ENGINE_X86
namespace engine {
using namespace test;
namespace {

struct Size {
  std::int64_t rows, cols, depth;
};
// Below, at and above the tile's 16, 32 and 14, the step of 32 depths and the passes of 512 and 2048.
constexpr Size kSizes[] = {{1, 1, 1}, {3, 17, 31}, {14, 32, 32}, {15, 33, 64}, {16, 16, 65}, {17, 65, 96}, {33, 31, 513}, {32, 48, 1024}, {5, 40, 1088}, {35, 20, 2080}};

void need_packing() {
  const bool vbmi = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
  if (detected_isa() < Isa::avx512 || !vbmi) SKIP("packing for these kernels needs AVX-512 with VBMI and VBMI2");
}

float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
float operand(float x) { return round_to_bf16(flush(x)); }
float fused(float a, float b, float c) { return flush(std::fma(a, b, c)); }

// One sum as the instructions make it: passes of so many depths added up, each from 0.
using Sum = float (*)(const float* a, const float* b, std::int64_t depth);

// tdpbf16ps: every 32 depths, the even and the odd products apart.
float tile_sum(const float* a, const float* b, std::int64_t depth) {
  float total = 0;
  for (std::int64_t at = 0; at < depth; at += 32) {
    float even = 0, odd = 0;
    for (std::int64_t d = at; d < std::min(at + 32, depth); d += 2) {
      even = fused(a[d], b[d], even);
      if (d + 1 < depth) odd = fused(a[d + 1], b[d + 1], odd);
    }
    total = flush(total + flush(even + odd));
  }
  return total;
}

// vdpbf16ps: the odd product of a pair before the even one.
float pair_sum(const float* a, const float* b, std::int64_t depth) {
  float total = 0;
  for (std::int64_t d = 0; d < depth; d += 2) {
    if (d + 1 < depth) total = fused(a[d + 1], b[d + 1], total);
    total = fused(a[d], b[d], total);
  }
  return total;
}

struct Case {
  const char* name;
  const GemmKernel* kernel;
  Sum sum;
};
const Case kCases[] = {{"amx", &gemm_kernel_amx_software, tile_sum}, {"avx512_bf16", &gemm_kernel_avx512bf16_software, pair_sum}};

std::vector<float> product(const GemmKernel& kernel, const Size& s, const std::vector<float>& a, RightOperand b, std::vector<float> c, const float* bias,
                           bool accumulate, ExtraProduct extra = {}) {
  gemm_blocked(exec(Isa::avx512, Compute::bf16), kernel, s.rows, s.cols, s.depth, 1.0f, {a.data(), s.depth, 1}, b, bias, {c.data(), s.rows, s.cols}, accumulate,
               extra);
  return c;
}

// Some values are subnormal, which these instructions take for zero.
std::vector<float> values_with_subnormals(std::int64_t n, std::uint64_t stream) {
  auto values = random_values(n, stream);
  for (std::size_t i = 3; i < values.size(); i += 17) values[i] = 3e-39f;
  return values;
}

}  // namespace

TEST("a product by the tile and pair instructions has the bits that their definition gives") {
  need_packing();
  for (const Case& test : kCases)
    for (const Size s : kSizes) {
      const auto a = values_with_subnormals(s.rows * s.depth, 1), b = values_with_subnormals(s.cols * s.depth, 2);
      std::vector<float> left(a.size()), right(b.size());
      std::ranges::transform(a, left.begin(), operand);
      std::ranges::transform(b, right.begin(), operand);
      // The right operand by rows and by columns of memory.
      std::vector<float> turned(b.size());
      for (std::int64_t n = 0; n < s.cols; ++n)
        for (std::int64_t d = 0; d < s.depth; ++d) turned[static_cast<std::size_t>(d * s.cols + n)] = b[static_cast<std::size_t>(n * s.depth + d)];
      const auto by_rows = product(*test.kernel, s, a, {{b.data(), s.depth, 1}}, poisoned(s.rows * s.cols), nullptr, false);
      const auto by_cols = product(*test.kernel, s, a, {{turned.data(), 1, s.cols}}, poisoned(s.rows * s.cols), nullptr, false);
      for (std::int64_t m = 0; m < s.rows; ++m)
        for (std::int64_t n = 0; n < s.cols; ++n) {
          float expected = 0;
          for (std::int64_t at = 0; at < s.depth; at += test.kernel->depth_block) {
            const float pass = test.sum(&left[static_cast<std::size_t>(m * s.depth + at)], &right[static_cast<std::size_t>(n * s.depth + at)],
                                        std::min(test.kernel->depth_block, s.depth - at));
            expected = at == 0 ? pass : expected + pass;
          }
          const auto i = static_cast<std::size_t>(m * s.cols + n);
          if (by_rows[i] != expected || by_cols[i] != expected)
            report_failure(__FILE__, __LINE__, text(test.name, " ", s.rows, "x", s.cols, "x", s.depth, " at ", m, ", ", n, ": ", by_rows[i], " and ", by_cols[i],
                                                    " instead of ", expected));
        }
    }
}

// The depths of a step of 32 in the order in which NF4 is looked up.
std::vector<float> in_lookup_order(const std::vector<float>& values) {
  constexpr int kPairs[] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  std::vector<float> out(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) out[i] = values[i / 32 * 32 + 2 * static_cast<std::size_t>(kPairs[i % 32 / 2]) + i % 2];
  return out;
}

TEST("an NF4 product by tiles has the bits that its order of depths gives") {
  need_packing();
  const Size s{18, 33, 2240};
  const OwnedWeight w = make_weight(WeightKind::nf4_double, s.cols, s.depth, 1);
  auto x = values_with_subnormals(s.rows * s.depth, 2);
  std::vector<float> right(static_cast<std::size_t>(s.cols * s.depth));
  decode_weight(Isa::scalar, w.view, 0, s.cols * s.depth, right.data());
  const auto got = product(gemm_kernel_amx_software, s, x, {{}, &w.view, false}, poisoned(s.rows * s.cols), nullptr, false);
  std::ranges::transform(x, x.begin(), operand);
  std::ranges::transform(right, right.begin(), operand);
  const auto a = in_lookup_order(x), b = in_lookup_order(right);
  for (std::int64_t m = 0; m < s.rows; ++m)
    for (std::int64_t n = 0; n < s.cols; ++n) {
      const float *row = &a[static_cast<std::size_t>(m * s.depth)], *column = &b[static_cast<std::size_t>(n * s.depth)];
      CHECK_EQ(got[static_cast<std::size_t>(m * s.cols + n)], tile_sum(row, column, 2048) + tile_sum(row + 2048, column + 2048, s.depth - 2048));
    }
}

TEST("stored weights, both ways round, with bias, low-rank term and accumulation, agree with linear's definition") {
  need_packing();
  for (const WeightKind kind : kWeightKinds)
    for (const Size s : kSizes) {
      const std::int64_t rank = 16;
      const OwnedWeight w = make_weight(kind, s.cols, s.depth, 1);
      const auto x = random_values(s.rows * s.depth, 2), dy = random_values(s.rows * s.cols, 3), bias = random_values(s.cols, 4);
      const auto low = random_values(s.rows * rank, 5), b = random_values(s.cols * rank, 6), a = random_values(rank * s.depth, 7);
      const Exec definition = exec(Isa::scalar, Compute::bf16);
      for (const bool accumulate : {false, true}) {
        const LowRank forward{{low.data(), s.rows, rank}, {b.data(), s.cols, rank}, 0.5f}, backward{{low.data(), s.rows, rank}, {a.data(), rank, s.depth}, 0.5f};
        const auto y_before = accumulate ? random_values(s.rows * s.cols, 8) : poisoned(s.rows * s.cols);
        const auto dx_before = accumulate ? random_values(s.rows * s.depth, 9) : poisoned(s.rows * s.depth);
        auto y = y_before, dx = dx_before;
        linear(definition, {x.data(), s.rows, s.depth}, w.view, bias.data(), {y.data(), s.rows, s.cols}, accumulate, &forward);
        linear_backward_input(definition, {dy.data(), s.rows, s.cols}, w.view, {dx.data(), s.rows, s.depth}, accumulate, &backward);
        for (const Case& test : kCases) {
          const auto got_y = product(*test.kernel, s, x, {{}, &w.view, false}, y_before, bias.data(), accumulate, {rank, 0.5f, {low.data(), rank, 1}, {b.data(), rank, 1}});
          const auto got_dx = product(*test.kernel, {s.rows, s.depth, s.cols}, dy, {{}, &w.view, true}, dx_before, nullptr, accumulate,
                                      {rank, 0.5f, {low.data(), rank, 1}, {a.data(), 1, s.depth}});
          CHECK_ERROR(relative_error(got_y, y), 2e-6, test.name, " weight ", static_cast<int>(kind), " shape ", s.rows, "x", s.cols, "x", s.depth);
          CHECK_ERROR(relative_error(got_dx, dx), 2e-6, test.name, " dx, weight ", static_cast<int>(kind), " shape ", s.rows, "x", s.cols, "x", s.depth);
        }
      }
    }
}

TEST("NF4 packed for the tiles is worth bf16(code · absmax), exactly, both ways round") {
  need_packing();
  for (const Case& test : kCases) {
    const std::int64_t n = 70, k = 128;
    const OwnedWeight w = make_weight(WeightKind::nf4_double, n, k, 1);
    std::vector<float> one_k(static_cast<std::size_t>(k * k)), one_n(static_cast<std::size_t>(n * n)), values(static_cast<std::size_t>(n * k));
    for (std::int64_t i = 0; i < k; ++i) one_k[static_cast<std::size_t>(i * k + i)] = 1.0f;
    for (std::int64_t i = 0; i < n; ++i) one_n[static_cast<std::size_t>(i * n + i)] = 1.0f;
    const auto y = product(*test.kernel, {k, n, k}, one_k, {{}, &w.view, false}, poisoned(k * n), nullptr, false);
    const auto dx = product(*test.kernel, {n, k, n}, one_n, {{}, &w.view, true}, poisoned(n * k), nullptr, false);
    decode_weight(Isa::scalar, w.view, 0, n * k, values.data());
    for (std::int64_t r = 0; r < n; ++r)
      for (std::int64_t c = 0; c < k; ++c) {
        const float expected = round_to_bf16(values[static_cast<std::size_t>(r * k + c)]);
        CHECK_EQ(y[static_cast<std::size_t>(c * n + r)], expected);
        CHECK_EQ(dx[static_cast<std::size_t>(r * k + c)], expected);
      }
  }
}

TEST("few rows through tiles of weights have the bits of the blocked product") {
  need_packing();
  for (const WeightKind kind : {WeightKind::bf16, WeightKind::nf4, WeightKind::nf4_double})
    for (const Size s : {Size{1, 1, 64}, Size{2, 17, 128}, Size{4, 40, 1088}, Size{7, 33, 320}, Size{16, 70, 2176}}) {
      const OwnedWeight w = make_weight(kind, s.cols, s.depth, 1);
      const auto x = values_with_subnormals(s.rows * s.depth, 2), bias = random_values(s.cols, 3);
      std::vector<std::uint8_t> packed(static_cast<std::size_t>(few_rows_amx_software.packed_bytes(s.depth)));
      few_rows_amx_software.pack({x.data(), s.rows, s.depth}, kind != WeightKind::bf16, packed.data());
      for (const bool accumulate : {false, true}) {
        const auto before = accumulate ? random_values(s.rows * s.cols, 4) : poisoned(s.rows * s.cols);
        auto y = before;
        const std::int64_t middle = s.cols / 2 / 16 * 16;  // two parts, as two threads would
        few_rows_amx_software.multiply(w.view, 0, middle, packed.data(), bias.data(), {y.data(), s.rows, s.cols}, accumulate);
        few_rows_amx_software.multiply(w.view, middle, s.cols, packed.data(), bias.data(), {y.data(), s.rows, s.cols}, accumulate);
        CHECK(y == product(gemm_kernel_amx_software, s, x, {{}, &w.view, false}, before, bias.data(), accumulate));
      }
    }
  // bf16 whose rows are no whole steps of 32.
  const Size odd{3, 21, 77};
  const OwnedWeight w = make_weight(WeightKind::bf16, odd.cols, odd.depth, 1);
  const auto x = random_values(odd.rows * odd.depth, 2);
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(few_rows_amx_software.packed_bytes(odd.depth)));
  few_rows_amx_software.pack({x.data(), odd.rows, odd.depth}, false, packed.data());
  auto y = poisoned(odd.rows * odd.cols);
  few_rows_amx_software.multiply(w.view, 0, odd.cols, packed.data(), nullptr, {y.data(), odd.rows, odd.cols}, false);
  CHECK(y == product(gemm_kernel_amx_software, odd, x, {{}, &w.view, false}, poisoned(odd.rows * odd.cols), nullptr, false));
}

TEST("where the processor has the instructions, they give the bits of their definition") {
  if (detected_isa() < Isa::avx512_bf16) SKIP("no AVX512-BF16 or AMX on this processor");
  need_packing();
  for (const Size s : kSizes) {
    const OwnedWeight w = make_weight(WeightKind::nf4, s.cols, s.depth, 1);
    const auto a = values_with_subnormals(s.rows * s.depth, 1), b = values_with_subnormals(s.cols * s.depth, 2);
    const auto same = [&](const GemmKernel& hardware, const GemmKernel& software) {
      for (const RightOperand& right : {RightOperand{{b.data(), s.depth, 1}}, RightOperand{{}, &w.view, false}})
        CHECK(product(hardware, s, a, right, poisoned(s.rows * s.cols), nullptr, false) == product(software, s, a, right, poisoned(s.rows * s.cols), nullptr, false));
    };
    same(gemm_kernel_avx512bf16, gemm_kernel_avx512bf16_software);
    if (detected_isa() >= Isa::amx) same(gemm_kernel_amx, gemm_kernel_amx_software);
  }
}

}  // namespace engine
#endif
