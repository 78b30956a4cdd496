#include "cuda/train/gradient_sum.h"

#include <cstddef>
#include <vector>

#include "core/error.h"
#include "cuda/runtime/memory.h"
#include "cuda/runtime/stream.h"
#include "cuda/train/nccl.h"

namespace engine::cuda {
namespace {

class HostGradientSum final : public GradientSum {
 public:
  void add_up(std::span<const SumPart> parts, std::int64_t n) override {
    const std::int64_t bytes = n * static_cast<std::int64_t>(sizeof(float));
    while (copies_.size() < parts.size() || copies_.front().bytes() < bytes) {
      if (!copies_.empty() && copies_.front().bytes() < bytes) copies_.clear();
      copies_.emplace_back(bytes);
    }
    for (std::size_t i = 0; i < parts.size(); ++i) {
      use_device(parts[i].device);
      copy_to_host(copies_[i].data(), parts[i].values, bytes, parts[i].stream);
    }
    for (const SumPart& part : parts) wait(part);
    auto* sum = copies_.front().as<float>();
    for (std::size_t i = 1; i < parts.size(); ++i) {
      const auto* values = copies_[i].as<float>();
      for (std::int64_t j = 0; j < n; ++j) sum[j] += values[j];
    }
    for (const SumPart& part : parts) {
      use_device(part.device);
      copy_to_device(part.values, sum, bytes, part.stream);
    }
    for (const SumPart& part : parts) wait(part);  // the sum is overwritten by the next call
  }
  std::string_view library() const noexcept override { return "host"; }

 private:
  static void wait(const SumPart& part) {
    use_device(part.device);
    const Event reached;
    reached.record(part.stream);
    reached.synchronize();
  }
  std::vector<PinnedMemory> copies_;
};

class NcclGradientSum final : public GradientSum {
 public:
  NcclGradientSum(const Nccl& nccl, std::span<const int> devices) : nccl_(nccl), communicators_(nccl.open(devices)) {}
  ~NcclGradientSum() override {
    for (ncclComm_t communicator : communicators_) nccl_.close(communicator);
  }
  void add_up(std::span<const SumPart> parts, std::int64_t n) override {
    require(Code::internal, parts.size() == communicators_.size(), "a sum of ", parts.size(), " replicas with ", communicators_.size(), " communicators");
    nccl_.begin();
    for (std::size_t i = 0; i < parts.size(); ++i) {
      use_device(parts[i].device);
      nccl_.sum(parts[i].values, n, communicators_[i], parts[i].stream);
    }
    nccl_.end();
  }
  std::string_view library() const noexcept override { return "nccl"; }

 private:
  const Nccl& nccl_;
  std::vector<ncclComm_t> communicators_;
};

}  // namespace

std::unique_ptr<GradientSum> make_host_gradient_sum() { return std::make_unique<HostGradientSum>(); }

std::unique_ptr<GradientSum> make_gradient_sum(std::span<const int> devices) {
  if (const Nccl* nccl = Nccl::find()) return std::make_unique<NcclGradientSum>(*nccl, devices);
  return make_host_gradient_sum();
}

}  // namespace engine::cuda
