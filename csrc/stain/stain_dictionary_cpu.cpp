// Vahadane's dictionary of two atoms on weighted densities.
#include "stain/stain.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr int kSums = 10;  // c c^T (3), x c^T (6), objective

// One pass over all densities: the closed-form codes of each, and what the next atoms and the objective need of them.
// Every choice is a select, so that the compiler vectorises the loop.
void add_codes(const double* x, const double* y, const double* z, const double* weight, std::int64_t count,
               const double* atoms, double penalty, double* sums) {
  const double a0 = atoms[0], a1 = atoms[1], a2 = atoms[2], b0 = atoms[3], b1 = atoms[4], b2 = atoms[5];
  const double aa = a0 * a0 + a1 * a1 + a2 * a2, ab = a0 * b0 + a1 * b1 + a2 * b2, bb = b0 * b0 + b1 * b1 + b2 * b2;
  const double det = aa * bb - ab * ab;
  const bool plane = det > 1e-12;
  const double over = plane ? 1.0 / det : 0.0, over_a = aa > 0.0 ? 1.0 / aa : 0.0, over_b = bb > 0.0 ? 1.0 / bb : 0.0;
  const double outside = plane ? 0.0 : -1.0;  // one line is no plane: single atoms alone
  double s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0, s8 = 0, s9 = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double xi = x[i], yi = y[i], zi = z[i], w = weight[i];
    const double p = a0 * xi + a1 * yi + a2 * zi - penalty, q = b0 * xi + b1 * yi + b2 * zi - penalty;
    const double both_a = (bb * p - ab * q) * over, both_b = (aa * q - ab * p) * over;
    const double only_a = (p > 0.0 ? p : 0.0) * over_a, only_b = (q > 0.0 ? q : 0.0) * over_b;
    const double least = (both_a < both_b ? both_a : both_b) + outside;
    const double better = only_a * p - only_b * q;
    const double single_a = better >= 0.0 ? only_a : 0.0, single_b = better >= 0.0 ? 0.0 : only_b;
    const double c = least >= 0.0 ? both_a : single_a, d = least >= 0.0 ? both_b : single_b;
    const double rx = xi - c * a0 - d * b0, ry = yi - c * a1 - d * b1, rz = zi - c * a2 - d * b2;
    s0 += w * c * c;
    s1 += w * c * d;
    s2 += w * d * d;
    s3 += w * xi * c;
    s4 += w * yi * c;
    s5 += w * zi * c;
    s6 += w * xi * d;
    s7 += w * yi * d;
    s8 += w * zi * d;
    s9 += w * (0.5 * (rx * rx + ry * ry + rz * rz) + penalty * (c + d));
  }
  const double found[kSums] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9};
  for (int k = 0; k < kSums; ++k) sums[k] = found[k];
}

// The best atom given the other one and the codes' sums, among those non-negative and of length at most 1.
void better_atom(int j, const double* sums, double* atoms) {
  const double own = sums[j == 0 ? 0 : 2];
  if (!(own > 0.0)) return;  // an atom nothing uses stays where it is
  double square = 0.0, made[3];
  for (int k = 0; k < 3; ++k) {
    const double best = (sums[3 + 3 * j + k] - sums[1] * atoms[3 * (1 - j) + k]) / own;
    made[k] = best > 0.0 ? best : 0.0;
    square += made[k] * made[k];
  }
  if (!(square > 0.0)) return;
  const double scale = square > 1.0 ? 1.0 / __builtin_sqrt(square) : 1.0;
  for (int k = 0; k < 3; ++k) atoms[3 * j + k] = made[k] * scale;
}

}  // namespace

// density [3, count], weight [count]; atoms [2, 3] in and out. Alternates codes and atoms until no coordinate moves by
// `tolerance`. Returns the sum of weight * (|x - D c|^2 / 2 + penalty (c_1 + c_2)).
double stain_dictionary(const double* density, const double* weight, std::int64_t count, double penalty, int iterations,
                        double tolerance, double* atoms) {
  double sums[kSums] = {};
  for (int step = 0; step <= iterations; ++step) {
    add_codes(density, density + count, density + 2 * count, weight, count, atoms, penalty, sums);
    if (step == iterations) break;
    double before[6], moved = 0.0;
    for (int k = 0; k < 6; ++k) before[k] = atoms[k];
    for (int sweep = 0; sweep < 20; ++sweep)
      for (int j = 0; j < 2; ++j) better_atom(j, sums, atoms);
    for (int k = 0; k < 6; ++k) {
      const double by = atoms[k] > before[k] ? atoms[k] - before[k] : before[k] - atoms[k];
      moved = by > moved ? by : moved;
    }
    if (moved < tolerance) break;
  }
  return sums[9];
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
