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
  bool counted = false;
};

inline DiceScore dice_score(double intersection, double prediction, double target, double elements,
                            const DiceOptions& options) {
  DiceScore dice;
  dice.counted = elements > 0.0 && !(options.empty == Empty::skip && target == 0.0);
  if (!dice.counted) return dice;
  if (target == 0.0 && prediction == 0.0) {  // constant: the score of an empty pair is a convention
    dice.loss = options.empty == Empty::one ? 0.0 : 1.0;
    return dice;
  }
  const double numerator = 2.0 * intersection + options.smooth_nr, total = prediction + target;
  const double denominator = (options.jaccard ? 2.0 * (total - intersection) : total) + options.smooth_dr;
  const double ratio = numerator / denominator, factor = options.jaccard ? 2.0 : 1.0;
  dice.loss = 1.0 - ratio;
  dice.of_intersection = -2.0 / denominator - (options.jaccard ? 2.0 * ratio / denominator : 0.0);
  dice.of_prediction = (options.squared ? 2.0 : 1.0) * factor * ratio / denominator;
  return dice;
}

}  // namespace fastmtl
