#include "gradients/pcgrad.hpp"

#include <limits>

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kMaxTasks = 64;
constexpr double kLargest = std::numeric_limits<double>::max();

}  // namespace

bool pcgrad(const double* G, const std::int64_t* order, std::int64_t K, std::int64_t M, bool mean, double* w) {
  for (std::int64_t i = 0; i < K; ++i) {
    std::uint64_t met = M == K ? 0 : std::uint64_t{1} << i;  // a row of K - 1 must not name its own task
    for (std::int64_t m = 0; m < M; ++m) {
      const std::int64_t j = order[i * M + m];
      if (j < 0 || j >= K || (met >> j & 1)) return false;
      met |= std::uint64_t{1} << j;
    }
  }

  // A NaN among the sums would get lost: the comparison below passes it over, and g++ 12 turns a loop that keeps one
  // in a double into a minimum, which drops it.
  bool finite = true;
  for (std::int64_t n = 0; n < K * K; ++n) finite &= G[n] >= -kLargest && G[n] <= kLargest;
  if (!finite) {
    for (std::int64_t k = 0; k < K; ++k) w[k] = std::numeric_limits<double>::quiet_NaN();
    return true;
  }
  double active = 0.0;
  for (std::int64_t k = 0; k < K; ++k) {
    w[k] = 0.0;
    active += G[k * K + k] != 0.0;
  }
  for (std::int64_t i = 0; i < K; ++i) {
    double c[kMaxTasks] = {};
    c[i] = 1.0;
    for (std::int64_t m = 0; m < M; ++m) {
      const std::int64_t j = order[i * M + m];
      const double* g = G + j * K;
      if (j == i || g[j] == 0.0) continue;
      double s = 0.0;
      for (std::int64_t k = 0; k < K; ++k) s += g[k] * c[k];
      if (s < 0.0) c[j] -= s / g[j];
    }
    for (std::int64_t k = 0; k < K; ++k) w[k] += c[k];
  }
  if (mean && active > 1.0)
    for (std::int64_t k = 0; k < K; ++k) w[k] /= active;
  return true;
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
