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
struct DiceScore {
  double loss = 0.0, of_intersection = 0.0, of_prediction = 0.0;
  double counted = 0.0;  // 1, or 0 where the segment takes part in no mean
};

inline DiceScore dice_score(double intersection, double prediction, double target, double elements,
                            const DiceOptions& options) {
  if (elements == 0.0 || (target == 0.0 && options.empty == Empty::skip)) return {};
  if (target == 0.0 && prediction == 0.0)  // constant: the score of an empty pair is a convention
    return {options.empty == Empty::one ? 0.0 : 1.0, 0.0, 0.0, 1.0};
  const double factor = options.jaccard ? 2.0 : 1.0, q = options.squared ? 2.0 : 1.0;
  const double numerator = 2.0 * intersection + options.smooth_nr;
  const double total = factor * (prediction + target) - (factor - 1.0) * 2.0 * intersection;
  const double denominator = total + options.smooth_dr, ratio = numerator / denominator, share = 1.0 / denominator;
  return {1.0 - ratio, share * (-2.0 - (factor - 1.0) * 2.0 * ratio), share * q * factor * ratio, 1.0};
}

}  // namespace fastmtl
