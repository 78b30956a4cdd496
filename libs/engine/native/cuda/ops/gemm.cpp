// gemm.cpp: products through cuBLASLt, or the engine's own kernel where there is none or where it refuses a shape.
#include "cuda/ops/gemm.h"

#include <algorithm>
#include <array>
#include <sstream>
#include <vector>

#include "core/error.h"
#include "cuda/runtime/error.h"
#include "cuda/runtime/libraries.h"
#include "cuda/runtime/stream.h"

namespace engine::cuda {
namespace {

// What an algorithm is chosen for. Ordered, so that the text of the choices is.
struct Shape {
  GemmForm form;
  std::int64_t m, n, k, lda, ldb, ldc;
  bool c_is_f32, accumulate, has_bias;
  auto operator<=>(const Shape&) const = default;
};

// The shape that `s` shares its algorithm with. Numbers of tokens are many, and each algorithm that is new to a process is loaded when it is first used,
// which takes longer than many products.
Shape general(Shape s) {
  constexpr std::int64_t kFew = 64, kStep = 256;
  std::int64_t& tokens = s.form == GemmForm::tn ? s.k : s.m;
  if (tokens > kFew) tokens = (tokens + kStep - 1) / kStep * kStep;
  return s;
}

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << static_cast<int>(s.form) << ' ' << s.m << ' ' << s.n << ' ' << s.k << ' ' << s.lda << ' ' << s.ldb << ' ' << s.ldc << ' ' << s.c_is_f32 << ' '
             << s.accumulate << ' ' << s.has_bias;
}

std::istream& operator>>(std::istream& in, Shape& s) {
  int form = 0;
  in >> form >> s.m >> s.n >> s.k >> s.lda >> s.ldb >> s.ldc >> s.c_is_f32 >> s.accumulate >> s.has_bias;
  if (form < 0 || form > 2) in.setstate(std::ios::failbit);
  s.form = static_cast<GemmForm>(form);
  return in;
}

void check(const CublasLt*, int status, const char* what) { require(Code::internal, status == CublasLt::kSuccess, "cuBLASLt: ", what, " returned ", status); }

// The library's description of one shape. Matrices are row-major here and column-major there, so c = a·b becomes cᵀ = bᵀ·aᵀ: a and b change places.
class Plan {
 public:
  Plan(const CublasLt& lt, const Shape& s) : lt_(lt) {
    check(&lt, lt.operation_create(&operation_, CublasLt::kCompute32F, CublasLt::kF32), "an operation");
    const bool a_transposed = s.form == GemmForm::tn, b_transposed = s.form == GemmForm::nt;
    set(CublasLt::kTransposeA, b_transposed ? CublasLt::kTransposed : CublasLt::kPlain);
    set(CublasLt::kTransposeB, a_transposed ? CublasLt::kTransposed : CublasLt::kPlain);
    if (s.has_bias) {
      set(CublasLt::kEpilogue, CublasLt::kEpilogueBias);
      set(CublasLt::kBiasType, CublasLt::kBf16);
    }
    const auto u = [](std::int64_t v) { return static_cast<std::uint64_t>(v); };
    layout(b_, CublasLt::kBf16, b_transposed ? u(s.k) : u(s.n), b_transposed ? u(s.n) : u(s.k), s.ldb);
    layout(a_, CublasLt::kBf16, a_transposed ? u(s.m) : u(s.k), a_transposed ? u(s.k) : u(s.m), s.lda);
    layout(c_, s.c_is_f32 ? CublasLt::kF32 : CublasLt::kBf16, u(s.n), u(s.m), s.ldc);
  }
  ~Plan() {
    for (CublasLtLayout each : {a_, b_, c_})
      if (each != nullptr) (void)lt_.layout_destroy(each);
    if (operation_ != nullptr) (void)lt_.operation_destroy(operation_);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // The library's best guesses, best first; none when it does not do the shape.
  std::vector<CublasLtHeuristic> candidates(CublasLtHandle handle, int wanted) const {
    CublasLtPreference preference = nullptr;
    check(&lt_, lt_.preference_create(&preference), "a preference");
    const auto workspace = static_cast<std::uint64_t>(Gemm::workspace_bytes());
    // Sums that are split along K are joined in fp32 and in order: reproducible, and no less exact than one sum.
    const std::uint32_t schemes = CublasLt::kReduceInComputeType, alignment = 16;
    (void)lt_.preference_set(preference, CublasLt::kWorkspaceBytes, &workspace, sizeof workspace);
    (void)lt_.preference_set(preference, CublasLt::kReductionSchemes, &schemes, sizeof schemes);
    for (const int operand : {CublasLt::kAlignmentA, CublasLt::kAlignmentB, CublasLt::kAlignmentC, CublasLt::kAlignmentD})
      (void)lt_.preference_set(preference, operand, &alignment, sizeof alignment);
    std::vector<CublasLtHeuristic> results(static_cast<std::size_t>(wanted));
    int found = 0;
    const int status = lt_.heuristic(handle, operation_, b_, a_, c_, c_, preference, wanted, results.data(), &found);
    (void)lt_.preference_destroy(preference);
    results.resize(status == CublasLt::kSuccess ? static_cast<std::size_t>(found) : 0);
    return results;
  }

  // Whether an algorithm that was chosen for another shape serves this one.
  bool takes(CublasLtHandle handle, const CublasLtAlgorithm& algorithm) const {
    CublasLtHeuristic result{};
    return lt_.check(handle, operation_, b_, a_, c_, c_, &algorithm, &result) == CublasLt::kSuccess && result.status == CublasLt::kSuccess &&
           result.workspace_bytes <= static_cast<std::size_t>(Gemm::workspace_bytes());
  }

  int multiply(CublasLtHandle handle, const CublasLtAlgorithm& algorithm, const void* a, const void* b, void* c, float alpha, float beta, const bf16* bias,
               void* workspace, cudaStream_t stream) const {
    if (bias != nullptr) (void)lt_.operation_set(operation_, CublasLt::kBiasPointer, &bias, sizeof bias);
    return lt_.multiply(handle, operation_, &alpha, b, b_, a, a_, &beta, c, c_, c, c_, &algorithm, workspace, static_cast<std::size_t>(Gemm::workspace_bytes()),
                        stream);
  }

 private:
  void set(int attribute, std::int32_t value) { check(&lt_, lt_.operation_set(operation_, attribute, &value, sizeof value), "an attribute"); }
  void layout(CublasLtLayout& to, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t stride) {
    check(&lt_, lt_.layout_create(&to, type, rows, columns, stride), "a layout");
  }

  const CublasLt& lt_;
  CublasLtOperation operation_ = nullptr;
  CublasLtLayout a_ = nullptr, b_ = nullptr, c_ = nullptr;
};

struct Choice {
  std::unique_ptr<Plan> plan;
  bool by_library = false;  // false: the engine's own kernel
  CublasLtAlgorithm algorithm{};
};

constexpr int kCandidates = 12, kTimedRuns = 5;
constexpr std::int64_t kUncachedBytes = std::int64_t{512} << 20, kAlignment = 256;  // several times the second-level cache; of what an arena gives

std::int64_t operand_bytes(std::int64_t rows, std::int64_t stride, std::int64_t value_bytes) { return aligned_bytes(rows * stride * value_bytes); }

}  // namespace

struct Gemm::State {
  const CublasLt* lt = nullptr;
  CublasLtHandle handle = nullptr;
  DeviceMemory workspace;
  std::string library = "mma", origin = "mma";
  std::map<Shape, Choice> choices;

  Choice& choice(const Shape& shape) {
    auto found = choices.find(shape);
    if (found == choices.end()) {
      Choice made{std::make_unique<Plan>(*lt, shape)};
      if (const Shape like = general(shape); like != shape) {
        const Choice& other = choice(like);
        made.by_library = other.by_library && made.plan->takes(handle, other.algorithm);
        made.algorithm = other.algorithm;
      }
      if (made.by_library) return choices.emplace(shape, std::move(made)).first->second;
      const auto candidates = made.plan->candidates(handle, 1);
      made.by_library = !candidates.empty();
      if (made.by_library) made.algorithm = candidates[0].algorithm;
      found = choices.emplace(shape, std::move(made)).first;
    }
    if (found->second.plan == nullptr) found->second.plan = std::make_unique<Plan>(*lt, shape);
    return found->second;
  }

  template <class Out>
  void run(GemmForm form, View<const bf16> a, View<const bf16> b, View<Out> c, cudaStream_t stream, float alpha, float beta, const bf16* bias) {
    const std::int64_t k = form == GemmForm::tn ? a.rows : a.cols;
    const bool agrees = (form == GemmForm::tn ? a.cols : a.rows) == c.rows && (form == GemmForm::nt ? b.rows : b.cols) == c.cols &&
                        (form == GemmForm::nt ? b.cols : b.rows) == k;
    require(agrees, "operands ", a.rows, "x", a.cols, " and ", b.rows, "x", b.cols, " do not give ", c.rows, "x", c.cols);
    if (c.rows == 0 || c.cols == 0) return;
    if (lt != nullptr && k > 0) {
      const Choice& chosen = choice({form, c.rows, c.cols, k, a.stride, b.stride, c.stride, std::is_same_v<Out, float>, beta != 0.0f, bias != nullptr});
      if (chosen.by_library) {
        const int status = chosen.plan->multiply(handle, chosen.algorithm, a.data, b.data, c.data, alpha, beta, bias, workspace.data(), stream);
        check(lt, status, "a product");
        return;
      }
    }
    gemm_mma(form, a, b, c, alpha, beta, bias, stream);
  }
};

Gemm::Gemm(GemmLibrary library) : state_(std::make_unique<State>()) {
  const CublasLt* lt = library == GemmLibrary::automatic ? cublas_lt() : nullptr;
  if (lt == nullptr || lt->create(&state_->handle) != CublasLt::kSuccess) return;
  state_->lt = lt;
  state_->workspace = DeviceMemory(workspace_bytes());
  const std::size_t version = lt->version();
  state_->library = text("cublasLt ", version / 10000, '.', version / 100 % 100, '.', version % 100);
  state_->origin = text(state_->library, ", ", device_info(0).name);
}

Gemm::~Gemm() {
  state_->choices.clear();
  if (state_->handle != nullptr) (void)state_->lt->destroy(state_->handle);
}

void Gemm::operator()(GemmForm form, View<const bf16> a, View<const bf16> b, View<bf16> c, cudaStream_t stream, float alpha, float beta, const bf16* bias) {
  state_->run(form, a, b, c, stream, alpha, beta, bias);
}

void Gemm::operator()(GemmForm form, View<const bf16> a, View<const bf16> b, View<float> c, cudaStream_t stream, float alpha, float beta, const bf16* bias) {
  state_->run(form, a, b, c, stream, alpha, beta, bias);
}

std::int64_t Gemm::tune_bytes(GemmForm form, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t lda, std::int64_t ldb, std::int64_t ldc,
                              bool c_is_f32) {
  return operand_bytes(form == GemmForm::tn ? k : m, lda, 2) + operand_bytes(form == GemmForm::nt ? n : k, ldb, 2) + operand_bytes(m, ldc, c_is_f32 ? 4 : 2) +
         aligned_bytes(2 * n);
}

void Gemm::tune(GemmForm form, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t lda, std::int64_t ldb, std::int64_t ldc, bool c_is_f32,
                bool accumulate, bool has_bias, void* scratch, std::int64_t scratch_bytes, cudaStream_t stream) {
  require(scratch_bytes >= tune_bytes(form, m, n, k, lda, ldb, ldc, c_is_f32), "tuning needs ", tune_bytes(form, m, n, k, lda, ldb, ldc, c_is_f32),
          " bytes of scratch; ", scratch_bytes, " are given");
  if (state_->lt == nullptr || m == 0 || n == 0 || k == 0) return;
  Choice& chosen = state_->choice({form, m, n, k, lda, ldb, ldc, c_is_f32, accumulate, has_bias});
  if (!chosen.by_library) return;
  DeviceArena arena(scratch, scratch_bytes);
  void* a = arena.take_bytes(operand_bytes(form == GemmForm::tn ? k : m, lda, 2));
  void* c = arena.take_bytes(operand_bytes(m, ldc, c_is_f32 ? 4 : 2));
  auto* bias = has_bias ? arena.take<bf16>(n) : nullptr;
  // As many of b as the scratch has room for, taken in turn: where b is a weight, a use finds it in no cache.
  const std::int64_t b_bytes = operand_bytes(form == GemmForm::nt ? n : k, ldb, 2);
  std::vector<void*> b{arena.take_bytes(b_bytes)};
  while (static_cast<std::int64_t>(b.size() + 1) * b_bytes <= kUncachedBytes && arena.used() + b_bytes + kAlignment <= scratch_bytes) b.push_back(arena.take_bytes(b_bytes));
  std::size_t turn = 0;
  // Zeros take less power than data, so a clock may be higher than in use; but it is so for all candidates.
  fill_bytes(scratch, 0, arena.used(), stream);
  const Event begin(Event::Timing::on), end(Event::Timing::on);
  double best = 0;
  for (const CublasLtHeuristic& candidate : chosen.plan->candidates(state_->handle, kCandidates)) {
    std::array<double, kTimedRuns> times{};
    bool works = true;
    for (int i = -1; i < kTimedRuns && works; ++i) {  // the first run is not counted
      begin.record(stream);
      works = chosen.plan->multiply(state_->handle, candidate.algorithm, a, b[turn++ % b.size()], c, 1.0f, accumulate ? 1.0f : 0.0f, bias, state_->workspace.data(), stream) ==
              CublasLt::kSuccess;
      end.record(stream);
      end.synchronize();
      if (i >= 0) times[static_cast<std::size_t>(i)] = end.milliseconds_since(begin);
    }
    if (!works) continue;
    std::sort(times.begin(), times.end());
    const double median = times[kTimedRuns / 2];
    if (best == 0 || median < best) {
      best = median;
      chosen.algorithm = candidate.algorithm;
    }
  }
}

std::string Gemm::choices() const {
  std::ostringstream out;
  out << state_->origin << '\n';
  for (const auto& [shape, choice] : state_->choices) {
    out << shape << ' ' << choice.by_library;
    for (const std::uint64_t word : choice.algorithm.data) out << ' ' << word;
    out << '\n';
  }
  return std::move(out).str();
}

bool Gemm::restore(std::string_view choices) {
  std::istringstream in{std::string(choices)};
  std::string origin;
  if (!std::getline(in, origin) || origin != state_->origin) return false;
  std::map<Shape, Choice> read;
  for (Shape shape{}; in >> shape;) {
    Choice choice;
    in >> choice.by_library;
    for (std::uint64_t& word : choice.algorithm.data) in >> word;
    require(Code::corrupt, !in.fail(), "the stored choice of matrix algorithms ends within a line");
    read[shape] = std::move(choice);
  }
  state_->choices = std::move(read);
  return true;
}

std::string_view Gemm::library() const noexcept { return state_->library; }

}  // namespace engine::cuda
