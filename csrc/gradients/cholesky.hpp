// Cholesky factor and solves of small symmetric systems, in double, K <= 64.
#pragma once

#include <cmath>
#include <cstdint>

namespace fastmtl {

constexpr std::int64_t kMaxTasks = 64;

// A [K, K] positive definite, the lower half read and overwritten with its factor. False: it is not, or not finite.
inline bool cholesky(double* A, std::int64_t K) {
  for (std::int64_t j = 0; j < K; ++j) {
    double pivot = A[j * K + j];
    for (std::int64_t k = 0; k < j; ++k) pivot -= A[j * K + k] * A[j * K + k];
    if (!(pivot > 0.0)) return false;
    pivot = std::sqrt(pivot);
    A[j * K + j] = pivot;
    for (std::int64_t i = j + 1; i < K; ++i) {
      double sum = A[i * K + j];
      for (std::int64_t k = 0; k < j; ++k) sum -= A[i * K + k] * A[j * K + k];
      A[i * K + j] = sum / pivot;
    }
  }
  return true;
}

// Solves with the factor; x [K] holds the right side and then the solution.
inline void cholesky_solve(const double* L, std::int64_t K, double* x) {
  for (std::int64_t i = 0; i < K; ++i) {
    for (std::int64_t k = 0; k < i; ++k) x[i] -= L[i * K + k] * x[k];
    x[i] /= L[i * K + i];
  }
  for (std::int64_t i = K - 1; i >= 0; --i) {
    for (std::int64_t k = i + 1; k < K; ++k) x[i] -= L[k * K + i] * x[k];
    x[i] /= L[i * K + i];
  }
}

}  // namespace fastmtl
