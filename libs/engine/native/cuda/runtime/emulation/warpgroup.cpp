// warpgroup.cpp: wgmma.m64nNk16, a warp at a time: each warp of a group owns 16 rows of the result (the layouts are in warpgroup.h).
//   A product reads shared memory and writes its sums when it is waited for, never before. Products are exact in fp32; the sum over k is fp32, in the
//   order of k. Faults: an operand outside the block's shared memory or not fenced, lanes or warps of a group that differ, a product never waited for.
#include "cuda/runtime/warpgroup.h"

#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "core/bf16.h"
#include "core/error.h"

namespace engine::cuda::emulation {
namespace {

constexpr unsigned kLanes = 32, kMostWarps = 32, kMostColumns = 256;

struct Pending {
  std::array<float*, kLanes> d;
  float a[16][16];  // when it is in registers
  GroupProduct shape;
  int group;
};

struct Products {
  std::vector<Pending> pending;
  int committed = 0, started = 0;
  bool fenced = false;
};
std::array<Products, kMostWarps> warps;

Products& mine() { return warps[now.thread.x / kLanes]; }

float wide(std::uint32_t bits, bool fp16) { return fp16 ? to_float(f16{static_cast<std::uint16_t>(bits)}) : std::bit_cast<float>(bits << 16); }

// The matrix of a descriptor, 16 of the sum by `count` of M or N: matrix(outer, inner) = to[outer * 16 + inner].
void read_matrix(std::uint64_t descriptor, bool transposed, bool fp16, unsigned first, unsigned count, float* to) {
  const std::uint64_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1) fault("a matrix descriptor that does not say 128-byte swizzle");
  const auto chunk = [](std::uint64_t at) {
    at ^= (at >> 7 & 7) << 4;
    std::array<std::uint16_t, 8> values;
    std::memcpy(values.data(), shared_for_products(at, sizeof values), sizeof values);
    return values;
  };
  if (transposed) {
    for (unsigned outer = first; outer < first + count; outer += 8)
      for (unsigned inner = 0; inner < 16; ++inner) {
        const auto values = chunk(start + outer / 64 * leading + outer % 64 * 2 + inner / 8 * stride + inner % 8 * 128);
        for (unsigned i = 0; i < 8; ++i) to[(outer - first + i) * 16 + inner] = wide(values[i], fp16);
      }
  } else {
    for (unsigned outer = first; outer < first + count; ++outer)
      for (unsigned inner = 0; inner < 16; inner += 8) {
        const auto values = chunk(start + outer / 8 * stride + outer % 8 * 128 + inner * 2);
        for (unsigned i = 0; i < 8; ++i) to[(outer - first) * 16 + inner + i] = wide(values[i], fp16);
      }
  }
}

void carry_out(const Pending& p, unsigned warp) {
  const unsigned n = p.shape.n;
  float a[16][16], b[kMostColumns][16];
  if (p.shape.a_in_registers)
    std::memcpy(a, p.a, sizeof a);
  else
    read_matrix(p.shape.a_matrix, false, p.shape.fp16, warp % 4 * 16, 16, &a[0][0]);
  read_matrix(p.shape.b_matrix, p.shape.b_transposed, p.shape.fp16, 0, n, &b[0][0]);
  for (unsigned lane = 0; lane < kLanes; ++lane)
    for (unsigned f = 0; f < n / 8; ++f)
      for (unsigned i = 0; i < 4; ++i) {
        const float *row = a[lane / 4 + i / 2 * 8], *column = b[8 * f + 2 * (lane % 4) + i % 2];
        float product = 0;
        for (unsigned k = 0; k < 16; ++k) product += row[k] * column[k];
        float& sum = p.d[lane][4 * f + i];
        sum = p.shape.add ? sum + product : product;
      }
}

void note_product(const std::byte* slots, std::byte*) {
  Products& products = mine();
  if (!products.fenced) fault("a product before wgmma.fence");
  Pending p{};
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    GroupProduct given;
    std::memcpy(&given, slots + lane * kSlotBytes, sizeof given);
    if (lane == 0) p.shape = given;
    if (given.a_matrix != p.shape.a_matrix || given.b_matrix != p.shape.b_matrix || given.n != p.shape.n || given.add != p.shape.add ||
        given.a_in_registers != p.shape.a_in_registers || given.b_transposed != p.shape.b_transposed || given.fp16 != p.shape.fp16)
      fault("lanes give different operands to one product");
    p.d[lane] = given.d;
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + 8 * (i % 2), column = 2 * (lane % 4) + 8 * (i / 2);
      p.a[row][column] = wide(given.a[i] & 0xffffu, given.fp16);
      p.a[row][column + 1] = wide(given.a[i] >> 16, given.fp16);
    }
  }
  p.group = products.committed;
  products.pending.push_back(p);
  ++products.started;
}

}  // namespace

static_assert(sizeof(GroupProduct) <= kSlotBytes);

void start_product(const GroupProduct& product) { meet(Together::group_multiply, &product, sizeof product, note_product); }

void fence_products() {
  meet(Together::group_fence, nullptr, 0, [](const std::byte*, std::byte*) { mine().fenced = true; });
}

void commit_products() {
  meet(Together::group_commit, nullptr, 0, [](const std::byte*, std::byte*) { ++mine().committed; });
}

void wait_products(int groups_left) {
  meet(Together::group_wait, &groups_left, sizeof groups_left, [](const std::byte* slots, std::byte*) {
    int left;
    std::memcpy(&left, slots, sizeof left);
    Products& products = mine();
    std::size_t done = 0;
    for (; done < products.pending.size() && products.pending[done].group < products.committed - left; ++done)
      carry_out(products.pending[done], now.thread.x / kLanes);
    products.pending.erase(products.pending.begin(), products.pending.begin() + static_cast<std::ptrdiff_t>(done));
    products.fenced = false;
  });
}

void begin_block_products() {
  for (Products& products : warps) products = {};
}

void end_block_products(unsigned warp_count) {
  for (unsigned w = 0; w < warp_count; ++w) {
    if (!warps[w].pending.empty()) fault("the block ends with a product that it has not waited for");
    const unsigned group = w / 4 * 4;
    if (warps[w].started != warps[group].started) fault("the warps of a group have started different numbers of products");
  }
}

}  // namespace engine::cuda::emulation
