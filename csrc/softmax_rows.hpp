// The softmax of many classes that lie side by side, one pixel at a time: vector lanes run over classes. It leaves what
// `exponentials` leaves for each pixel of a block: the maximum, e of the own class, its distance to the maximum, and the
// sum over the other classes.
// Included by *_cpu.cpp alone (see numbers.hpp for the namespace).
#pragma once

#include "softmax_exponentials.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kRowPart = 1024;  // classes converted at a time

// Calls body(x, first, padded) for parts of the row of classes that begins at `start`. Class `without` is left out: it
// reads as -infinity, whose e is 0, and so does what fills up the last vectors.
template <typename Body>
inline void for_each_part(const Planes& logits, std::int64_t start, std::int64_t channels, std::int64_t without,
                          Body body) {
  alignas(64) float buffer[kRowPart];
  for (std::int64_t first = 0; first < channels; first += kRowPart) {
    const std::int64_t count = channels - first < kRowPart ? channels - first : kRowPart;
    const std::int64_t padded = (count + kLanes - 1) / kLanes * kLanes, hole = without - first;
    const bool whole = count == padded && !(hole >= 0 && hole < count);
    if (logits.type == Element::float32 && whole) {
      body(static_cast<const float*>(logits.data) + start + first, first, padded);
      continue;
    }
    load(logits.type, logits.data, start + first, 1, count, buffer);
    for (std::int64_t c = count; c < padded; ++c) buffer[c] = -__builtin_inff();
    if (hole >= 0 && hole < count) buffer[hole] = -__builtin_inff();
    body(buffer, first, padded);
  }
}

// As integers that are ordered as the floats are: GCC vectorises no maximum of floats that may meet a NaN.
inline float maximum_of(const float* __restrict x, std::int64_t padded) {
  std::int32_t most = INT32_MIN;
  FASTMTL_EACH_LANE(c, padded) {
    const std::int32_t bits = bits_of<std::int32_t>(x[c]), ordered = bits ^ ((bits >> 31) & INT32_MAX);
    most = ordered > most ? ordered : most;
  }
  return bits_of<float>(most ^ ((most >> 31) & INT32_MAX));
}

inline float sum_of_exponentials(const float* __restrict x, std::int64_t padded, float top) {
  float sum = 0.0f;
  FASTMTL_EACH_LANE(c, padded) sum += exp_minus(top - x[c]);
  return sum;
}

inline void read_rows(const SoftmaxProblem& problem, const SoftmaxRun& run, const SoftmaxBlock& s) {
  const Planes& logits = problem.logits;
  fill(s.top, s.padded, 0.0f), fill(s.other, s.padded, 0.0f), fill(s.own, s.padded, 1.0f), fill(s.drop, s.padded, 0.0f);
  for (std::int64_t i = 0; i < s.count; ++i) {
    if (s.valid[i] == 0.0f) continue;
    const std::int64_t start = run.start(logits) + i * run.stride(logits);
    float top = -__builtin_inff(), other = 0.0f, at_class = 0.0f;
    for_each_part(logits, start, problem.channels, -1, [&](const float* x, std::int64_t, std::int64_t padded) {
      const float most = maximum_of(x, padded);
      top = most > top ? most : top;
    });
    for_each_part(logits, start, problem.channels, s.index[i], [&](const float* x, std::int64_t, std::int64_t padded) {
      other += sum_of_exponentials(x, padded, top);
    });
    if (s.index[i] >= 0) load(logits.type, logits.data, start + s.index[i], 1, 1, &at_class);
    s.top[i] = top, s.other[i] = other;
    s.drop[i] = s.index[i] >= 0 ? top - at_class : 0.0f;
    s.own[i] = s.index[i] >= 0 ? exp_minus(s.drop[i]) : 0.0f;
  }
}

}  // namespace
}  // namespace FASTMTL_ISA
}  // namespace fastmtl
