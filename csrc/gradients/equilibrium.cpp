// Damped Newton, step by step as in fastmtl/reference/equilibrium.py; it stops when it has converged.
#include "gradients/equilibrium.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gradients/cholesky.hpp"

namespace fastmtl {
namespace {

constexpr int kIterations = 150, kHalvings = 8;
constexpr double kRidge = 1e-12, kToBoundary = 0.95, kFullStep = 1e-3, kConverged = 1e-26;

double objective(const double* C, const double* r, double p, std::int64_t K, const double* y) {
  double total = 0.0;
  for (std::int64_t i = 0; i < K; ++i) {
    double product = kRidge * y[i];
    for (std::int64_t k = 0; k < K; ++k) product += C[i * K + k] * y[k];
    total += 0.5 * y[i] * product - r[i] * (p == 1.0 ? std::log(y[i]) : std::pow(y[i], 1.0 - p) / (1.0 - p));
  }
  return total;
}

}  // namespace

void equilibrium(const double* C, const double* r, double p, std::int64_t K, double* y) {
  bool finite = true;
  for (std::int64_t n = 0; n < K * K; ++n) finite &= std::isfinite(C[n]);
  for (std::int64_t i = 0; i < K; ++i) finite &= std::isfinite(r[i]);
  std::fill(y, y + K, finite ? 1.0 : std::numeric_limits<double>::quiet_NaN());
  if (!finite) return;
  double factor[kMaxTasks * kMaxTasks], dy[kMaxTasks], tried[kMaxTasks], gradient[kMaxTasks];
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    for (std::int64_t i = 0; i < K; ++i) {
      double product = kRidge * y[i];
      for (std::int64_t k = 0; k < K; ++k) {
        product += C[i * K + k] * y[k];
        factor[i * K + k] = C[i * K + k];
      }
      const double pull = r[i] * std::pow(y[i], -p);
      factor[i * K + i] += kRidge + p * pull / y[i];
      gradient[i] = product - pull;
      dy[i] = -gradient[i];
    }
    if (!cholesky(factor, K)) return;
    cholesky_solve(factor, K, dy);
    double decrement = 0.0, scale = 0.0, step = 1.0;
    for (std::int64_t i = 0; i < K; ++i) {
      decrement -= gradient[i] * dy[i];
      scale += r[i] * std::pow(y[i], 1.0 - p);
      if (dy[i] < 0.0) step = std::min(step, -kToBoundary * y[i] / dy[i]);
    }
    if (!(decrement > kConverged * scale)) return;
    if (decrement > kFullStep * scale) {
      double best = std::numeric_limits<double>::infinity(), chosen = step;
      for (int halving = 0; halving < kHalvings; ++halving, step *= 0.5) {
        for (std::int64_t i = 0; i < K; ++i) tried[i] = y[i] + step * dy[i];
        const double value = objective(C, r, p, K, tried);
        if (value < best) {
          best = value;
          chosen = step;
        }
      }
      step = chosen;
    }
    for (std::int64_t i = 0; i < K; ++i) y[i] += step * dy[i];
  }
}

}  // namespace fastmtl
