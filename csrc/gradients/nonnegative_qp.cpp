// Mehrotra's method, step by step as in fastmtl/reference/nonnegative_qp.py; it stops when it has converged.
#include "gradients/nonnegative_qp.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gradients/cholesky.hpp"

namespace fastmtl {
namespace {

constexpr int kIterations = 40;
constexpr double kRidge = 1e-14, kToBoundary = 0.995, kSmallest = 1e-200, kConverged = 1e-18;

struct Problem {
  std::int64_t K;
  double H[kMaxTasks * kMaxTasks], factor[kMaxTasks * kMaxTasks];
  double q[kMaxTasks], x[kMaxTasks], z[kMaxTasks], right[kMaxTasks], dx[kMaxTasks], dz[kMaxTasks];

  double longest(const double* from, const double* direction) const {
    double step = 1.0 / kToBoundary;
    for (std::int64_t i = 0; i < K; ++i)
      if (direction[i] < 0.0) step = std::min(step, -from[i] / direction[i]);
    return step;
  }

  // One predictor and corrector; false when nothing is left to gain.
  bool iterate() {
    double gap = 0.0;
    for (std::int64_t i = 0; i < K; ++i) gap += x[i] * z[i];
    gap /= static_cast<double>(K);
    if (!(gap >= kConverged)) return false;
    for (std::int64_t i = 0; i < K; ++i) {
      double product = q[i];  // (H x + q)_i: the residual plus z
      for (std::int64_t k = 0; k < K; ++k) {
        product += H[i * K + k] * x[k];
        factor[i * K + k] = H[i * K + k];
      }
      factor[i * K + i] += kRidge + z[i] / x[i];
      right[i] = dx[i] = -product;
    }
    if (!cholesky(factor, K)) return false;
    cholesky_solve(factor, K, dx);
    for (std::int64_t i = 0; i < K; ++i) dz[i] = -z[i] - z[i] / x[i] * dx[i];
    double step = std::min(longest(x, dx), longest(z, dz)), aimed = 0.0;
    for (std::int64_t i = 0; i < K; ++i) aimed += (x[i] + step * dx[i]) * (z[i] + step * dz[i]);
    const double ratio = std::clamp(aimed / static_cast<double>(K) / gap, 0.0, 1.0);
    for (std::int64_t i = 0; i < K; ++i) {
      dz[i] = gap * ratio * ratio * ratio - dx[i] * dz[i];  // what x_i z_i should become
      dx[i] = right[i] + dz[i] / x[i];
    }
    cholesky_solve(factor, K, dx);
    bool finite = true;
    for (std::int64_t i = 0; i < K; ++i) {
      dz[i] = -z[i] + (dz[i] - z[i] * dx[i]) / x[i];
      finite &= std::isfinite(dx[i]) && std::isfinite(dz[i]);
    }
    if (!finite) return false;
    step = std::min(1.0, kToBoundary * std::min(longest(x, dx), longest(z, dz)));
    for (std::int64_t i = 0; i < K; ++i) {
      x[i] = std::max(x[i] + step * dx[i], kSmallest);
      z[i] = std::max(z[i] + step * dz[i], kSmallest);
    }
    return true;
  }
};

bool finite(const double* values, std::int64_t count) {
  return std::all_of(values, values + count, [](double value) { return std::isfinite(value); });
}

}  // namespace

void nonnegative_qp(const double* H, const double* q, std::int64_t B, std::int64_t K, double* x) {
  Problem problem;
  problem.K = K;
  for (std::int64_t b = 0; b < B; ++b, H += K * K, q += K, x += K) {
    if (!finite(H, K * K) || !finite(q, K)) {
      std::fill(x, x + K, std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    double size = 0.0, slope = 0.0;
    for (std::int64_t i = 0; i < K; ++i) {
      size = std::max(size, H[i * K + i]);
      slope = std::max(slope, std::abs(q[i]));
    }
    if (size == 0.0) size = 1.0;
    if (slope == 0.0) slope = 1.0;
    for (std::int64_t n = 0; n < K * K; ++n) problem.H[n] = H[n] / size;
    for (std::int64_t i = 0; i < K; ++i) {
      problem.q[i] = q[i] / slope;
      problem.x[i] = problem.z[i] = 1.0;
    }
    for (int iteration = 0; iteration < kIterations && problem.iterate(); ++iteration) {
    }
    for (std::int64_t i = 0; i < K; ++i) x[i] = problem.x[i] * (slope / size);
  }
}

}  // namespace fastmtl
