// What happens once per sample: the fixed-order sum, the loss and its slopes, in float64.
#include "losses/class_loss.hpp"

#include <algorithm>
#include <vector>

namespace fastmtl {
namespace {

class Work {
 public:
  Work(const ClassLossProblem& problem, const KeptRows& kept, int threads)
      : chunks_(small_softmax_chunks(problem)),
        kept_(kept),
        threads_(useful_threads(problem, threads)),
        scratch_(problem.channels, chunks_, chunks_.rows ? 0 : 2, chunks_.rows ? 0 : 1, threads_) {}
  ClassLossWork get() { return {chunks_, kept_, scratch_.begin(), scratch_.size(), threads_}; }

 private:
  SoftmaxChunks chunks_;
  KeptRows kept_;
  int threads_;
  SoftmaxScratch scratch_;
};

// What a sample's sum is divided by; without a pixel, or of weight 0, by nothing.
double inverse(double divisor) { return divisor == 0.0 ? 1.0 : 1.0 / divisor; }

}  // namespace

std::int64_t class_loss_forward(const ClassLossProblem& problem, double factor, ClassReduction reduction, float* loss,
                                float* coefficients, const KeptRows& kept, int threads) {
  Work memory(problem, kept, threads);
  const ClassLossWork work = memory.get();
  const bool each = reduction == ClassReduction::none || reduction == ClassReduction::totals;
  const bool divided = reduction == ClassReduction::none || reduction == ClassReduction::sum;
  const auto units = static_cast<std::size_t>(work.chunks.units(problem.batch));
  std::vector<ClassLossSums> sums(units);
  ClassLossSums all{};
  const auto add = [](ClassLossSums& to, const ClassLossSums& more) {
    to.loss += more.loss, to.divisor += more.divisor, to.outside += more.outside;
  };
  if (work.chunks.across) {
    FASTMTL_DISPATCH(class_losses, problem, work, static_cast<float>(factor), divided, each ? loss : nullptr,
                     coefficients, sums.data());
    for (const ClassLossSums& group : sums) add(all, group);
  } else {
    FASTMTL_DISPATCH(class_loss_sums, problem, work, sums.data());
    for (std::int64_t b = 0; b < problem.batch; ++b) {
      ClassLossSums sample{};
      for (std::int64_t k = 0; k < work.chunks.count; ++k) add(sample, sums[b * work.chunks.count + k]);
      const double slope = factor * (divided ? inverse(sample.divisor) : 1.0);
      coefficients[b] = static_cast<float>(slope);
      sample.loss *= slope;
      if (each) loss[b] = static_cast<float>(sample.loss);
      add(all, sample);
    }
  }
  const double over = reduction == ClassReduction::mean ? inverse(all.divisor) : 1.0;
  if (reduction == ClassReduction::mean) std::fill_n(coefficients, problem.batch, static_cast<float>(factor * over));
  if (!each) *loss = static_cast<float>(all.loss * over);
  return static_cast<std::int64_t>(all.outside);
}

void class_loss_backward(const ClassLossProblem& problem, const Planes& grad, const float* coefficients,
                         const KeptRows& kept, const Planes& gradient, int threads) {
  Work work(problem, kept, threads);
  expect_whole_write(problem, gradient);
  FASTMTL_DISPATCH(class_loss_gradient, problem, work.get(), grad, coefficients, gradient);
}

}  // namespace fastmtl
