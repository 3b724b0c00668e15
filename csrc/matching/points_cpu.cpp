// The neighbours of a block of points are computed once for all channels.
#include "matching/points.hpp"

#include "core/rows.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kBlock = 256;               // points
constexpr std::int64_t kMinPerThread = 16 * 1024;  // samples

inline float value_of(std::uint8_t x) { return static_cast<float>(x); }
template <typename T>
inline auto value_of(T x) {
  return widen(x);
}

// The four neighbours of up to kBlock points: offsets into a plane, 0 where outside of it, and weights, 0 there.
// Index: 32 bits where a plane allows it, for twice the vector.
template <typename Real, typename Index>
struct Neighbours {
  alignas(64) Index offset[4][kBlock];
  alignas(64) Real weight[4][kBlock];

  void locate(const Real* coordinates, std::int64_t count, std::int64_t height, std::int64_t width) {
    alignas(64) Index left[kBlock], top[kBlock];
    alignas(64) Real right_share[kBlock], down_share[kBlock];
    const Index columns = static_cast<Index>(width), rows = static_cast<Index>(height);
    for (std::int64_t i = 0; i < count; ++i) {
      left[i] = split(coordinates[2 * i] * static_cast<Real>(columns) - Real(0.5), columns, right_share[i]);
      top[i] = split(coordinates[2 * i + 1] * static_cast<Real>(rows) - Real(0.5), rows, down_share[i]);
    }
    for (int corner = 0; corner < 4; ++corner) {
      const Index across = corner / 2, down = corner % 2;
      for (std::int64_t i = 0; i < count; ++i) {
        const Index column = left[i] + across, row = top[i] + down;
        const bool inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows);
        const Real x = across ? right_share[i] : Real(1) - right_share[i];
        const Real y = down ? down_share[i] : Real(1) - down_share[i];
        offset[corner][i] = inside ? row * columns + column : 0;
        weight[corner][i] = inside ? x * y : Real(0);
      }
    }
  }

 private:
  // The whole part; what is far outside, or NaN, becomes -2, where no neighbour is inside.
  static Index split(Real x, Index size, Real& rest) {
    x = (x > Real(-2)) & (x < static_cast<Real>(size) + 1) ? x : Real(-2);
    const Index truncated = static_cast<Index>(x), whole = truncated - (static_cast<Real>(truncated) > x);
    rest = x - static_cast<Real>(whole);
    return whole;
  }
};

int threads_for(const PointsProblem& p) {
  const std::int64_t useful = p.batch * p.channels * p.points / kMinPerThread;
  return useful < 1 ? 1 : useful < p.num_threads ? static_cast<int>(useful) : p.num_threads;
}

template <typename Index, typename T, typename Real>
void sample(const PointsProblem& p, const T* maps, std::int64_t batch_stride, std::int64_t channel_stride, Real* out) {
  const Real* coordinates = static_cast<const Real*>(p.coordinates);
  const std::int64_t blocks = (p.points + kBlock - 1) / kBlock;
  const int threads = threads_for(p);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t item = 0; item < p.batch * blocks; ++item) {
    const std::int64_t b = item / blocks, first = item % blocks * kBlock;
    const std::int64_t left = p.points - first, count = left < kBlock ? left : kBlock;
    Neighbours<Real, Index> near;
    near.locate(coordinates + 2 * (b * p.points + first), count, p.height, p.width);
    for (std::int64_t c = 0; c < p.channels; ++c) {
      const T* plane = maps + b * batch_stride + c * channel_stride;
      Real* result = out + (b * p.channels + c) * p.points + first;
      for (std::int64_t i = 0; i < count; ++i) {
        Real total = 0;
        for (int corner = 0; corner < 4; ++corner) {
          const Real weight = near.weight[corner][i];
          const Real part = weight * static_cast<Real>(value_of(plane[near.offset[corner][i]]));
          total += weight == 0 ? Real(0) : part;  // an infinite value must not meet a weight of 0
        }
        result[i] = total;
      }
    }
  }
}

// A thread owns whole planes: sums are taken in the order of the points, whatever the number of threads.
template <typename Index, typename Real>
void scatter(const PointsProblem& p, const Real* grad, Real* gradient) {
  const Real* coordinates = static_cast<const Real*>(p.coordinates);
  const std::int64_t pixels = p.height * p.width;
  const int threads = threads_for(p);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t plane = 0; plane < p.batch * p.channels; ++plane) {
    Real* out = gradient + plane * pixels;
    for (std::int64_t n = 0; n < pixels; ++n) out[n] = 0;
    Neighbours<Real, Index> near;
    for (std::int64_t first = 0; first < p.points; first += kBlock) {
      const std::int64_t left = p.points - first, count = left < kBlock ? left : kBlock;
      near.locate(coordinates + 2 * (plane / p.channels * p.points + first), count, p.height, p.width);
      const Real* own = grad + plane * p.points + first;
      for (std::int64_t i = 0; i < count; ++i)
        for (int corner = 0; corner < 4; ++corner)
          if (near.weight[corner][i] != 0) out[near.offset[corner][i]] += near.weight[corner][i] * own[i];
    }
  }
}

inline bool is_small(const PointsProblem& p) { return p.height * p.width < (std::int64_t{1} << 30); }

template <typename Real, typename Index>
void sample_type(const PointsProblem& p, const void* maps, Element type, std::int64_t batch_stride,
                 std::int64_t channel_stride, void* out) {
  Real* result = static_cast<Real*>(out);
  if (type == Element::uint8 || type == Element::boolean) {
    return sample<Index>(p, static_cast<const std::uint8_t*>(maps), batch_stride, channel_stride, result);
  }
  with_row_type(type, [&](auto* kind) {
    sample<Index>(p, static_cast<decltype(kind)>(maps), batch_stride, channel_stride, result);
  });
}

}  // namespace

void sample_points(const PointsProblem& problem, const void* maps, Element type, std::int64_t batch_stride,
                   std::int64_t channel_stride, void* out) {
  if (problem.is_double) {
    sample_type<double, std::int64_t>(problem, maps, type, batch_stride, channel_stride, out);
  } else if (is_small(problem)) {
    sample_type<float, std::int32_t>(problem, maps, type, batch_stride, channel_stride, out);
  } else {
    sample_type<float, std::int64_t>(problem, maps, type, batch_stride, channel_stride, out);
  }
}

void scatter_points(const PointsProblem& problem, const void* grad, void* gradient) {
  if (problem.is_double) {
    scatter<std::int64_t>(problem, static_cast<const double*>(grad), static_cast<double*>(gradient));
  } else if (is_small(problem)) {
    scatter<std::int32_t>(problem, static_cast<const float*>(grad), static_cast<float*>(gradient));
  } else {
    scatter<std::int64_t>(problem, static_cast<const float*>(grad), static_cast<float*>(gradient));
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
