// Where a block of points lies is worked out once, and used for all channels.
#include "points.hpp"

#include "rows.hpp"

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
template <typename Real>
struct Neighbours {
  std::int64_t offset[4][kBlock];
  Real weight[4][kBlock];

  void locate(const Real* coordinates, std::int64_t count, std::int64_t height, std::int64_t width) {
    const Real columns = static_cast<Real>(width), rows = static_cast<Real>(height);
    for (std::int64_t i = 0; i < count; ++i) {
      const Real x = coordinates[2 * i] * columns - Real(0.5), y = coordinates[2 * i + 1] * rows - Real(0.5);
      // Also false for NaN: such a point lies nowhere.
      const bool near = x > Real(-2) && x < columns + 1 && y > Real(-2) && y < rows + 1;
      const std::int64_t left = near ? floor_of(x) : -2, top = near ? floor_of(y) : -2;
      const Real right_share = near ? x - static_cast<Real>(left) : 0, down_share = near ? y - static_cast<Real>(top) : 0;
      for (int corner = 0; corner < 4; ++corner) {
        const std::int64_t column = left + corner / 2, row = top + corner % 2;
        const bool inside = column >= 0 && column < width && row >= 0 && row < height;
        const Real across = corner / 2 ? right_share : Real(1) - right_share;
        const Real down = corner % 2 ? down_share : Real(1) - down_share;
        offset[corner][i] = inside ? row * width + column : 0;
        weight[corner][i] = inside ? across * down : Real(0);
      }
    }
  }

 private:
  static std::int64_t floor_of(Real x) {
    const std::int64_t truncated = static_cast<std::int64_t>(x);
    return truncated - (static_cast<Real>(truncated) > x);
  }
};

int threads_for(const PointsProblem& p) {
  const std::int64_t useful = p.batch * p.channels * p.points / kMinPerThread;
  return useful < 1 ? 1 : useful < p.num_threads ? static_cast<int>(useful) : p.num_threads;
}

template <typename T, typename Real>
void sample(const PointsProblem& p, const T* maps, std::int64_t batch_stride, std::int64_t channel_stride, Real* out) {
  const Real* coordinates = static_cast<const Real*>(p.coordinates);
  const std::int64_t blocks = (p.points + kBlock - 1) / kBlock;
  const int threads = threads_for(p);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t item = 0; item < p.batch * blocks; ++item) {
    const std::int64_t b = item / blocks, first = item % blocks * kBlock;
    const std::int64_t left = p.points - first, count = left < kBlock ? left : kBlock;
    Neighbours<Real> near;
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
template <typename Real>
void scatter(const PointsProblem& p, const Real* grad, Real* gradient) {
  const Real* coordinates = static_cast<const Real*>(p.coordinates);
  const std::int64_t pixels = p.height * p.width;
  const int threads = threads_for(p);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t plane = 0; plane < p.batch * p.channels; ++plane) {
    Real* out = gradient + plane * pixels;
    for (std::int64_t n = 0; n < pixels; ++n) out[n] = 0;
    Neighbours<Real> near;
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

template <typename Real>
void sample_type(const PointsProblem& p, const void* maps, Element type, std::int64_t batch_stride,
                 std::int64_t channel_stride, void* out) {
  Real* result = static_cast<Real*>(out);
  if (type == Element::uint8 || type == Element::boolean) {
    return sample(p, static_cast<const std::uint8_t*>(maps), batch_stride, channel_stride, result);
  }
  with_row_type(type, [&](auto* kind) {
    sample(p, static_cast<decltype(kind)>(maps), batch_stride, channel_stride, result);
  });
}

}  // namespace

void sample_points(const PointsProblem& problem, const void* maps, Element type, std::int64_t batch_stride,
                   std::int64_t channel_stride, void* out) {
  if (problem.is_double) {
    sample_type<double>(problem, maps, type, batch_stride, channel_stride, out);
  } else {
    sample_type<float>(problem, maps, type, batch_stride, channel_stride, out);
  }
}

void scatter_points(const PointsProblem& problem, const void* grad, void* gradient) {
  if (problem.is_double) {
    scatter(problem, static_cast<const double*>(grad), static_cast<double*>(gradient));
  } else {
    scatter(problem, static_cast<const float*>(grad), static_cast<float*>(gradient));
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
