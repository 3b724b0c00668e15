#include <cmath>
#include <cstdint>

#include "stain.hpp"

namespace fastmtl {
namespace {

// The two codes of one density; returns |x - D c|^2 / 2 + penalty (c_1 + c_2). `gram`: d1 d1, d1 d2, d2 d2.
double codes(const double* x, const double* atoms, const double* gram, double penalty, double* c) {
  const double b0 = atoms[0] * x[0] + atoms[1] * x[1] + atoms[2] * x[2] - penalty;
  const double b1 = atoms[3] * x[0] + atoms[4] * x[1] + atoms[5] * x[2] - penalty;
  const double det = gram[0] * gram[2] - gram[1] * gram[1];
  c[0] = c[1] = -1.0;
  if (det > 1e-12) {
    c[0] = (gram[2] * b0 - gram[1] * b1) / det;
    c[1] = (gram[0] * b1 - gram[1] * b0) / det;
  }
  if (c[0] < 0.0 || c[1] < 0.0) {
    const double only0 = b0 > 0.0 && gram[0] > 0.0 ? b0 / gram[0] : 0.0;
    const double only1 = b1 > 0.0 && gram[2] > 0.0 ? b1 / gram[2] : 0.0;
    const bool zeroth = only0 * b0 >= only1 * b1;
    c[0] = zeroth ? only0 : 0.0;
    c[1] = zeroth ? 0.0 : only1;
  }
  double left = 0.0;
  for (int k = 0; k < 3; ++k) {
    const double rest = x[k] - c[0] * atoms[k] - c[1] * atoms[3 + k];
    left += rest * rest;
  }
  return 0.5 * left + penalty * (c[0] + c[1]);
}

// The best atom given the other one and the codes' sums, among those non-negative and of length at most 1.
void better_atom(int j, const double* cc, const double (*xc)[3], double* atoms) {
  const double own = cc[j == 0 ? 0 : 2];
  if (!(own > 0.0)) return;  // an atom nothing uses stays where it is
  double square = 0.0, made[3];
  for (int k = 0; k < 3; ++k) {
    made[k] = std::fmax((xc[j][k] - cc[1] * atoms[3 * (1 - j) + k]) / own, 0.0);
    square += made[k] * made[k];
  }
  if (!(square > 0.0)) return;
  const double scale = square > 1.0 ? 1.0 / std::sqrt(square) : 1.0;
  for (int k = 0; k < 3; ++k) atoms[3 * j + k] = made[k] * scale;
}

}  // namespace

double stain_dictionary(const double* density, const double* weight, std::int64_t count, double penalty,
                        int iterations, double tolerance, double* atoms) {
  double total = 0.0, objective = 0.0;
  for (std::int64_t i = 0; i < count; ++i) total += weight[i];
  for (int step = 0; step <= iterations; ++step) {
    const double gram[3] = {atoms[0] * atoms[0] + atoms[1] * atoms[1] + atoms[2] * atoms[2],
                            atoms[0] * atoms[3] + atoms[1] * atoms[4] + atoms[2] * atoms[5],
                            atoms[3] * atoms[3] + atoms[4] * atoms[4] + atoms[5] * atoms[5]};
    double cc[3] = {0.0, 0.0, 0.0}, xc[2][3] = {};
    objective = 0.0;
    for (std::int64_t i = 0; i < count; ++i) {
      double c[2];
      const double *x = density + 3 * i, w = weight[i];
      objective += w * codes(x, atoms, gram, penalty, c);
      cc[0] += w * c[0] * c[0];
      cc[1] += w * c[0] * c[1];
      cc[2] += w * c[1] * c[1];
      for (int k = 0; k < 3; ++k) {
        xc[0][k] += w * x[k] * c[0];
        xc[1][k] += w * x[k] * c[1];
      }
    }
    if (step == iterations) break;
    double before[6], moved = 0.0;
    for (int k = 0; k < 6; ++k) before[k] = atoms[k];
    for (int sweep = 0; sweep < 20; ++sweep)
      for (int j = 0; j < 2; ++j) better_atom(j, cc, xc, atoms);
    for (int k = 0; k < 6; ++k) moved = std::fmax(moved, std::fabs(atoms[k] - before[k]));
    if (moved < tolerance) break;
  }
  return total > 0.0 ? objective / total : 0.0;
}

}  // namespace fastmtl
