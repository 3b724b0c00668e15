#include "gradients/fused_step.hpp"

#include <cstdlib>

#include "gradients/weighted_sum.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kBlock = 64;                // columns whose gradient stays in registers or L1
constexpr std::int64_t kMinPerThread = 32 * 1024;  // elements
constexpr std::int64_t kChunk = 16 * 1024;         // elements of one partial sum of squares
constexpr std::int64_t kLanes = 8;

template <typename T>
inline T* at(std::int64_t address) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address));
}

enum class Kind { adamw, adam, nesterov, momentum, descend };

template <Kind kKind, typename Real>
inline void move(const Coefficients<Real>& c, const Real* __restrict g, Real* __restrict p, Real* __restrict m,
                 Real* __restrict v, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if constexpr (kKind == Kind::adamw || kKind == Kind::adam) {
      adam<kKind == Kind::adamw>(c, g[i], p[i], m[i], v[i]);
    } else if constexpr (kKind == Kind::descend) {
      descend(c, g[i], p[i]);
    } else {
      momentum<kKind == Kind::nesterov>(c, g[i], p[i], m[i]);
    }
  }
}

// Elements [begin, end) of one segment.
template <Kind kKind, typename T, typename Real>
void move_range(const Step& step, const Segment& segment, const Coefficients<Real>& c, Real factor, std::int64_t begin,
                std::int64_t end) {
  Real* p = at<Real>(segment.parameter);
  Real* m = at<Real>(segment.first);
  Real* v = at<Real>(segment.second);
  const Real* gradient = at<const Real>(segment.gradient);
  const T* J = static_cast<const T*>(step.J) + segment.column;
  const Real* w = static_cast<const Real*>(step.w);
  const auto block = [&](std::int64_t i, std::int64_t n) {
    Real g[kBlock];
    if (gradient == nullptr) {
      weighted_sum(J + i, step.K, step.row_stride, w, g, n);
      for (std::int64_t e = 0; e < n; ++e) g[e] = factor * g[e];
    } else {
      for (std::int64_t e = 0; e < n; ++e) g[e] = factor * gradient[i + e];
    }
    move<kKind>(c, g, p + i, m + i, v + i, n);
  };
  std::int64_t i = begin;
  for (; i + kBlock <= end; i += kBlock) block(i, kBlock);
  if (i < end) block(i, end - i);
}

template <typename T, typename Real>
void move_segment(const Step& step, const Segment& segment, Real factor, std::int64_t begin, std::int64_t end) {
  const Group& group = step.groups[segment.group];
  const float* steps = at<const float>(segment.step);
  const auto c = coefficients<Real>(group, group.lr, steps == nullptr ? 2.0 : static_cast<double>(*steps) + 1.0);
  switch (static_cast<Rule>(static_cast<int>(group.rule))) {
    case Rule::adamw: return move_range<Kind::adamw, T>(step, segment, c, factor, begin, end);
    case Rule::adam: return move_range<Kind::adam, T>(step, segment, c, factor, begin, end);
    case Rule::sgd: break;
  }
  if (segment.first == 0) {
    move_range<Kind::descend, T>(step, segment, c, factor, begin, end);
  } else if (group.nesterov != 0.0) {
    move_range<Kind::nesterov, T>(step, segment, c, factor, begin, end);
  } else {
    move_range<Kind::momentum, T>(step, segment, c, factor, begin, end);
  }
}

// The elements of all segments in a row, as many to each thread; a cut inside a segment falls between two blocks.
template <typename T, typename Real>
void move_all(const Step& step, Real factor, int num_threads) {
  std::int64_t total = 0;
  for (std::int64_t s = 0; s < step.n; ++s) total += step.segments[s].count;
  std::int64_t threads = (total + kMinPerThread - 1) / kMinPerThread;
  if (threads > num_threads) threads = num_threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t thread = 0; thread < threads; ++thread) {
    const std::int64_t from = total * thread / threads, to = total * (thread + 1) / threads;
    const auto cut = [](std::int64_t position, std::int64_t count) {
      const std::int64_t whole = position <= 0 ? 0 : (position + kBlock - 1) / kBlock * kBlock;
      return whole < count ? whole : count;
    };
    for (std::int64_t s = 0, first = 0; s < step.n; first += step.segments[s].count, ++s) {
      const Segment& segment = step.segments[s];
      const std::int64_t begin = cut(from - first, segment.count), end = cut(to - first, segment.count);
      if (begin < end) move_segment<T>(step, segment, factor, begin, end);
    }
  }
}

// Lane by lane, so that the order, and every bit, is the same on each instruction set.
template <typename Real>
double chunk_of_squares(const Real* g, std::int64_t n) {
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
      const double x = g[i + lane];
      lanes[lane] += x * x;
    }
  for (std::int64_t lane = 0; i < n; ++i, ++lane) lanes[lane] += static_cast<double>(g[i]) * static_cast<double>(g[i]);
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

template <typename Real>
bool add_squares(const Segment* segments, std::int64_t n, double* sum, int num_threads) {
  std::int64_t chunks = 0;
  for (std::int64_t s = 0; s < n; ++s) chunks += (segments[s].count + kChunk - 1) / kChunk;
  double* partials = static_cast<double*>(std::malloc(static_cast<std::size_t>(chunks + 1) * sizeof(double)));
  if (partials == nullptr) return false;
  const std::int64_t threads = chunks < num_threads ? (chunks > 0 ? chunks : 1) : num_threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t thread = 0; thread < threads; ++thread) {
    const std::int64_t from = chunks * thread / threads, to = chunks * (thread + 1) / threads;
    for (std::int64_t s = 0, first = 0; s < n; ++s) {
      const std::int64_t own = (segments[s].count + kChunk - 1) / kChunk;
      const Real* g = at<const Real>(segments[s].gradient);
      for (std::int64_t c = from > first ? from : first; c < to && c < first + own; ++c) {
        const std::int64_t begin = (c - first) * kChunk, left = segments[s].count - begin;
        partials[c] = chunk_of_squares(g + begin, left < kChunk ? left : kChunk);
      }
      first += own;
    }
  }
  for (std::int64_t c = 0; c < chunks; ++c) *sum += partials[c];
  std::free(partials);
  return true;
}

}  // namespace

bool sum_of_squares(const Segment* segments, std::int64_t n, bool wide, double* sum, int num_threads) {
  return wide ? add_squares<double>(segments, n, sum, num_threads) : add_squares<float>(segments, n, sum, num_threads);
}

void fused_step(const Step& step, double factor, int num_threads) {
  if (step.wide) {
    move_all<double>(step, factor, num_threads);
  } else if (step.row_type == Element::float16) {
    move_all<Half>(step, static_cast<float>(factor), num_threads);
  } else if (step.row_type == Element::bfloat16) {
    move_all<BFloat>(step, static_cast<float>(factor), num_threads);
  } else {
    move_all<float>(step, static_cast<float>(factor), num_threads);
  }
  for (std::int64_t s = 0; s < step.n; ++s)
    if (step.segments[s].step != 0) *at<float>(step.segments[s].step) += 1.0f;
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
