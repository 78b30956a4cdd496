#include "cuda/ops/gemm.h"

#include "cuda/ops/op_test.h"
#include "ops/gemm.h"

namespace engine::cuda {
namespace {

using namespace test;

struct Size {
  std::int64_t m, n, k;
};
const Size kSizes[] = {{0, 8, 8}, {8, 0, 8}, {1, 1, 0}, {1, 1, 1}, {63, 65, 17}, {65, 63, 129}, {130, 129, 72}, {3, 260, 1029}, {129, 7, 33}};
const GemmForm kForms[] = {GemmForm::nt, GemmForm::nn, GemmForm::tn};

// Operands as each form stores them, and the product that the CPU makes of them.
struct Case {
  std::int64_t m, n, a_rows, a_cols, b_rows, b_cols;
  std::vector<float> a, b, c, bias;

  Case(GemmForm form, const Size& s)
      : m(s.m), n(s.n), a_rows(form == GemmForm::tn ? s.k : s.m), a_cols(form == GemmForm::tn ? s.m : s.k), b_rows(form == GemmForm::nt ? s.n : s.k),
        b_cols(form == GemmForm::nt ? s.k : s.n) {
    a = random_bf16(a_rows * a_cols, 1);
    b = random_bf16(b_rows * b_cols, 2);
    c = random_bf16(m * n, 3);
    bias = random_bf16(n, 4);
  }

  std::vector<float> expected(GemmForm form, float alpha, float beta, bool with_bias) const {
    std::vector<float> out = c;
    for (float& value : out) value *= beta;
    const auto product = form == GemmForm::nt ? engine::gemm_nt : form == GemmForm::nn ? engine::gemm_nn : engine::gemm_tn;
    product(cpu(), rows(a, a_rows, a_cols), rows(b, b_rows, b_cols), rows(out, m, n), alpha, beta != 0.0f);
    if (beta == 0.0f && (a_cols == 0 || a_rows == 0)) std::fill(out.begin(), out.end(), 0.0f);
    if (with_bias)
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += bias[i % static_cast<std::size_t>(n)];
    return out;
  }
};

using Product = std::function<void(GemmForm, const DeviceRows& a, const DeviceRows& b, const DeviceRows* narrow, View<float> wide, float alpha, float beta,
                                   const bf16* bias)>;

void check_products(std::span<const Size> sizes, const Product& product) {
  for (const GemmForm form : kForms)
    for (const Size& size : sizes) {
      const Case c(form, size);
      const DeviceRows a(c.a, c.a_rows, c.a_cols, 8), b(c.b, c.b_rows, c.b_cols, 16), bias(c.bias, 1, c.n);
      const auto note = text(size.m, "x", size.n, "x", size.k, " form ", static_cast<int>(form));
      const DeviceRows written(c.m, c.n, 8), added(c.c, c.m, c.n);
      product(form, a, b, &written, {}, 1.0f, 0.0f, nullptr);
      CHECK_ERROR(relative_error(written.read(), c.expected(form, 1.0f, 0.0f, false)), kRounding, note);
      product(form, a, b, &added, {}, 0.5f, 1.0f, bias.view().data);
      CHECK_ERROR(relative_error(added.read(), c.expected(form, 0.5f, 1.0f, true)), kRounding, note);
      const DeviceBuffer<float> wide(c.c);
      product(form, a, b, nullptr, View<float>(wide.data(), c.m, c.n), 2.0f, 1.0f, nullptr);
      CHECK_ERROR(relative_error(wide.read(stream()), c.expected(form, 2.0f, 1.0f, false)), 2e-6, note);
    }
}

TEST("products by the engine's own kernel are the CPU's in every form, with edges anywhere") {
  check_products(kSizes, [](GemmForm form, const DeviceRows& a, const DeviceRows& b, const DeviceRows* narrow, View<float> wide, float alpha, float beta, const bf16* bias) {
    if (narrow != nullptr)
      gemm_mma(form, a.view(), b.view(), narrow->view(), alpha, beta, bias, stream());
    else
      gemm_mma(form, a.view(), b.view(), wide, alpha, beta, bias, stream());
  });
}

TEST("products through the library's choice are the CPU's, and the choices can be taken elsewhere") {
  for (const GemmLibrary library : {GemmLibrary::none, GemmLibrary::automatic}) {
    Gemm gemm(library), second(library);
    if (library == GemmLibrary::none) CHECK_EQ(gemm.library(), "mma");
    check_products(std::span(kSizes).first(6), [&](GemmForm form, const DeviceRows& a, const DeviceRows& b, const DeviceRows* narrow, View<float> wide, float alpha, float beta, const bf16* bias) {
      if (narrow != nullptr)
        gemm(form, a.view(), b.view(), narrow->view(), stream(), alpha, beta, bias);
      else
        gemm(form, a.view(), b.view(), wide, stream(), alpha, beta, bias);
    });
    CHECK(second.restore(gemm.choices()));
    CHECK_EQ(second.choices(), gemm.choices());
    CHECK(!second.restore("another library\n"));
  }
}

TEST("a tuned shape gives the same bits every time and on another object that restored it") {
  Gemm gemm, second;
  const DeviceRows a(random_bf16(192 * 256, 1), 192, 256), b(random_bf16(320 * 256, 2), 320, 256), first(192, 320), again(192, 320);
  const DeviceMemory scratch(Gemm::tune_bytes(GemmForm::nt, 192, 320, 256, 256, 256, 320, false));
  gemm.tune(GemmForm::nt, 192, 320, 256, 256, 256, 320, false, false, false, scratch.data(), scratch.bytes(), stream());
  gemm(GemmForm::nt, a.view(), b.view(), first.view(), stream());
  CHECK(second.restore(gemm.choices()));
  second(GemmForm::nt, a.view(), b.view(), again.view(), stream());
  CHECK(first.read() == again.read());
}

TEST("operands whose shapes disagree are refused") {
  const DeviceRows a(4, 16), b(5, 8), c(4, 5);
  CHECK_THROWS(invalid, (gemm_mma(GemmForm::nt, a.view(), b.view(), c.view(), 1.0f, 0.0f, nullptr, stream()), 0));
}

}  // namespace
}  // namespace engine::cuda
