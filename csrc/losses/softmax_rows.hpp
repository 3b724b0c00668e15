// The softmax of many contiguous classes, one pixel at a time: vector lanes run over classes. It leaves what
// `exponentials` leaves for each pixel of a block: the maximum, e of the own class, its distance to the maximum, and
// the sum over the other classes.
// Included by *_cpu.cpp alone.
#pragma once

#include "losses/softmax_exponentials.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kRowPart = 1024;       // classes converted at a time
constexpr std::int64_t kRowsElements = 4096;  // of rows read twice in a row: half of L1

// Calls body(x, first, padded) for parts of the row of classes that begins at `start`: whole vectors, without a
// copy if possible. The padding of the last one is -infinity, whose e is 0.
template <typename Body>
inline void for_each_part(const Planes& logits, std::int64_t start, std::int64_t channels, Body body) {
  alignas(64) float buffer[kRowPart];
  std::int64_t first = 0;
  if (logits.type == Element::float32 && logits.channel == 1) {
    first = channels / kLanes * kLanes;
    if (first > 0) body(static_cast<const float*>(logits.data) + start, std::int64_t{0}, first);
  }
  for (; first < channels; first += kRowPart) {
    const std::int64_t count = channels - first < kRowPart ? channels - first : kRowPart;
    const std::int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
    load(logits.type, logits.data, start + first * logits.channel, logits.channel, count, buffer);
    for (std::int64_t c = count; c < padded; ++c) buffer[c] = -__builtin_inff();
    body(buffer, first, padded);
  }
}

// As integers that are ordered as the floats are: GCC vectorises no maximum of floats that may meet a NaN.
inline float maximum_of(ConstFloats x, std::int64_t padded) {
  std::int32_t most = INT32_MIN;
  FASTMTL_EACH_LANE(c, padded) {
    const std::int32_t bits = bits_of<std::int32_t>(x[c]), ordered = bits ^ ((bits >> 31) & INT32_MAX);
    most = ordered > most ? ordered : most;
  }
  return bits_of<float>(most ^ ((most >> 31) & INT32_MAX));
}

// Of all classes but number `without`, e of all of them into `out` if it is to be kept. The bits are masked because GCC
// makes a branch of a choice here.
template <bool kStore>
inline float sum_of_exponentials(ConstFloats x, std::int64_t padded, float top, std::int32_t without, Floats out) {
  float sum = 0.0f;
  FASTMTL_EACH_NUMBERED_LANE(c, padded) {
    const float e = exp_minus(top - x[c]);
    if (kStore) out[c] = e;
    sum += bits_of<float>(bits_of<std::int32_t>(e) & -static_cast<std::int32_t>(c != without));
  }
  return sum;
}

// e of the own class, from its distance to the maximum.
inline void own_exponentials(const SoftmaxBlock& s) {
  const std::int32_t* __restrict index = s.index;
  ConstFloats drop = s.drop, valid = s.valid;
  Floats own = s.own;
  FASTMTL_EACH_LANE(i, s.padded) {
    const float e = exp_minus(drop[i]);
    own[i] = valid[i] != 0.0f && index[i] < 0 ? 0.0f : e;
  }
}

// e of all classes also goes to `kept`, float32 with contiguous classes.
template <bool kStore>
inline void read_rows(const SoftmaxProblem& problem, const SoftmaxRun& run, const SoftmaxBlock& s, const Planes& kept) {
  const Planes& logits = problem.logits;
  fill(s.top, s.padded, 0.0f), fill(s.other, s.padded, 0.0f), fill(s.drop, s.padded, 0.0f);
  const auto start_of = [&](std::int64_t i) { return run.start(logits) + i * run.stride(logits); };
  // The maxima of some rows and then their sums, while they are in L1: no row's sum waits for its own maximum.
  const std::int64_t some = kRowsElements / problem.channels + 1;
  for (std::int64_t begin = 0; begin < s.count; begin += some) {
    const std::int64_t end = begin + some < s.count ? begin + some : s.count;
    for (std::int64_t i = begin; i < end; ++i) {
      if (s.valid[i] == 0.0f) continue;
      float top = -__builtin_inff();
      for_each_part(logits, start_of(i), problem.channels, [&](const float* x, std::int64_t, std::int64_t padded) {
        const float most = maximum_of(x, padded);
        top = most > top ? most : top;
      });
      s.top[i] = top;
    }
    for (std::int64_t i = begin; i < end; ++i) {
      if (s.valid[i] == 0.0f) continue;
      const float top = s.top[i];
      const std::int32_t y = s.index[i];
      float other = 0.0f, at_class = top;
      for_each_part(
          logits, start_of(i), problem.channels, [&](const float* x, std::int64_t first, std::int64_t padded) {
            alignas(64) float rest[kRowPart];
            const std::int64_t left = problem.channels - first;
            float* row = kStore ? static_cast<float*>(kept.data) + run.start(kept) + i * run.stride(kept) + first
                                : nullptr;
            float* out = left < padded ? rest : row;
            other += sum_of_exponentials<kStore>(x, padded, top, y - static_cast<std::int32_t>(first), out);
            if (kStore && out == rest) store(Element::float32, rest, row, 0, 1, left);
          });
      if (y >= 0) load(logits.type, logits.data, start_of(i) + y * logits.channel, 1, 1, &at_class);
      s.other[i] = other, s.drop[i] = top - at_class;
    }
  }
  own_exponentials(s);
}

// What `read_rows` leaves, from the maxima and sums [B] that it once left of each sample's one pixel.
inline void recall_rows(const SoftmaxProblem& problem, const SoftmaxRun& run, const SoftmaxBlock& s, const float* tops,
                        const float* others) {
  const Planes& logits = problem.logits;
  fill(s.top, s.padded, 0.0f), fill(s.other, s.padded, 0.0f), fill(s.drop, s.padded, 0.0f);
  for (std::int64_t i = 0; i < s.count; ++i) {
    if (s.valid[i] == 0.0f) continue;
    const std::int32_t y = s.index[i];
    float at_class = s.top[i] = tops[run.sample + i];
    s.other[i] = others[run.sample + i];
    const std::int64_t start = run.start(logits) + i * run.stride(logits);
    if (y >= 0) load(logits.type, logits.data, start + y * logits.channel, 1, 1, &at_class);
    s.drop[i] = s.top[i] - at_class;
  }
  own_exponentials(s);
}

// One pixel's classes as floats that fill whole vectors, the last one with `none`.
inline void load_row(const Planes& planes, std::int64_t sample, std::int64_t pixel, std::int64_t channels, float none,
                     float* out) {
  load(planes.type, planes.data, sample * planes.batch + pixel * planes.pixel, planes.channel, channels, out);
  for (std::int64_t c = channels; c % kLanes != 0; ++c) out[c] = none;
}

// Of one pixel what `exponentials` and `normalise` leave for each.
struct RowSoftmax {
  float top, other, own, inverse, log_sum, cost;
};

// The logits go into x and the exponentials into e; class y, if it is one, is the pixel's own.
inline RowSoftmax softmax_row(const SoftmaxProblem& problem, std::int64_t sample, std::int64_t pixel, std::int32_t y,
                              float* __restrict x, float* __restrict e) {
  load_row(problem.logits, sample, pixel, problem.channels, -__builtin_inff(), x);
  const std::int64_t padded = (problem.channels + kLanes - 1) / kLanes * kLanes;
  const float top = maximum_of(x, padded);
  float other = 0.0f;
  FASTMTL_EACH_NUMBERED_LANE(c, padded) {
    const float value = exp_minus(top - x[c]);
    e[c] = value;
    other += c == y ? 0.0f : value;
  }
  const float own = y >= 0 ? e[y] : 0.0f, drop = y >= 0 ? top - x[y] : 0.0f;
  const float log_sum = log1p_positive(own == 1.0f ? other : other - 1.0f + own);
  return {top, other, own, 1.0f / (other + own), log_sum, drop + log_sum};
}

}  // namespace
}  // namespace FASTMTL_ISA
}  // namespace fastmtl
