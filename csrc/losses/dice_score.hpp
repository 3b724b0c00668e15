// The Dice (or Jaccard) loss of one segment from its sums, with its slopes: what every loss with a Dice term ends in.
#pragma once

namespace fastmtl {

// An empty segment has an empty target (T = 0); an empty pair has an empty prediction (P = 0) too.
enum class Empty : int { one = 0, zero = 1, skip = 2 };

struct DiceOptions {
  double smooth_nr, smooth_dr;
  bool jaccard, squared;
  Empty empty;
};

// loss = 1 - score; the slopes are d loss / d I and, times q (2 if squared, else 1), d loss / d P.
template <typename Real>
struct DiceScore {
  Real loss = 0, of_intersection = 0, of_prediction = 0;
  Real counted = 0;  // 1, or 0 where the segment takes part in no mean
};

// Without a branch, so that loops over segments vectorise; static, so that each instruction set has its own.
template <typename Real>
static inline DiceScore<Real> dice_score(Real intersection, Real prediction, Real target, Real elements,
                                         const DiceOptions& options) {
  const Real factor = options.jaccard ? Real(2) : Real(1), q = options.squared ? Real(2) : Real(1);
  const Real of_pair = options.empty == Empty::one ? Real(0) : Real(1);
  const Real kept = options.empty == Empty::skip ? Real(0) : Real(1);
  const Real counted = elements > Real(0) ? (target == Real(0) ? kept : Real(1)) : Real(0);
  // Constant: the score of an empty pair is a convention.
  const bool pair = (target == Real(0)) & (prediction == Real(0));
  const Real numerator = Real(2) * intersection + static_cast<Real>(options.smooth_nr);
  const Real total = factor * (prediction + target) - (factor - Real(1)) * Real(2) * intersection;
  const Real denominator = pair ? Real(1) : total + static_cast<Real>(options.smooth_dr);
  const Real ratio = numerator / denominator, over = counted / denominator;
  const Real share = pair | (counted == Real(0)) ? Real(0) : over;  // not 0 / NaN
  const Real loss = pair ? of_pair : Real(1) - ratio;
  return {counted == Real(0) ? Real(0) : loss,
          share == Real(0) ? Real(0) : share * (Real(-2) - (factor - Real(1)) * Real(2) * ratio),
          share == Real(0) ? Real(0) : share * q * factor * ratio, counted};
}

}  // namespace fastmtl
