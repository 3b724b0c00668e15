// Where a block of output columns lies in its source. Only *_cpu.cpp files may include it.
#pragma once

#include "core/numbers.hpp"
#include "loading/transform.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kBlock = 256;  // columns
constexpr int kMostControls = 67;     // a side of a field: Augmentation.cells is at most 64

struct Source {
  const std::uint8_t* pixels;
  std::int64_t pitch;
  std::int32_t height, width, channels;

  explicit Source(const std::int64_t* row)
      : pixels(reinterpret_cast<const std::uint8_t*>(static_cast<std::uintptr_t>(row[0]))),
        pitch(row[1]),
        height(static_cast<std::int32_t>(row[2])),
        width(static_cast<std::int32_t>(row[3])),
        channels(static_cast<std::int32_t>(row[4])) {}

  // The pixel, or nullptr beyond the source.
  const std::uint8_t* at(std::int32_t line, std::int32_t column) const {
    const bool inside = (line >= 0) & (column >= 0) & (line < height) & (column < width);
    return inside ? pixels + line * pitch + std::int64_t{column} * channels : nullptr;
  }
};

// Weights of the four control points around position t, 0..1, in a cell.
inline void spline(float t, float (&weights)[4]) {
  const float s = 1.0f - t;
  weights[0] = s * s * s * (1.0f / 6.0f);
  weights[3] = t * t * t * (1.0f / 6.0f);
  weights[1] = (3.0f * t * t * (t - 2.0f) + 4.0f) * (1.0f / 6.0f);
  weights[2] = 1.0f - weights[0] - weights[1] - weights[3];
}

// Where whole pixels are copied from: bytes from the source's first pixel to that of the first output pixel, and from
// there for each output column and line.
struct Copy {
  std::int64_t first, column, line;
};

// Source positions of a block of output columns, in pixels from the first one's centre.
class Geometry {
 public:
  Geometry(const TransformSources& from, std::int64_t row, const Source& source)
      : size_(static_cast<float>(from.size)),
        cells_(static_cast<std::int32_t>(from.side) - 3),
        field_(cells_ > 0 ? from.field + row * 2 * from.side * from.side : nullptr) {
    const float per_pixel = 1.0f / size_,
                extents[2] = {static_cast<float>(source.width), static_cast<float>(source.height)};
    for (int axis = 0; axis < 2; ++axis) {
      const float* m = from.matrix + row * 6 + axis * 3;
      across_[axis] = m[0] * per_pixel * extents[axis];
      down_[axis] = m[1] * per_pixel * extents[axis];
      start_[axis] = m[2] * extents[axis] - 0.5f;
      limit_[axis] = extents[axis];
    }
  }

  // Whether each output pixel is a pixel of the source, as in cuts, flips and quarter turns without scale: nothing is
  // interpolated then. Positions that floats round by less than 2^-10 pixel on each axis change no level by half.
  bool copies(const Source& source, Copy* copy) const {
    if (cells_ > 0) return false;
    const float last = size_ - 1.0f;
    float first[2], column[2], line[2];
    for (int axis = 0; axis < 2; ++axis) {
      const float start = 0.5f * (across_[axis] + down_[axis]) + start_[axis];
      first[axis] = __builtin_roundf(start);
      column[axis] = __builtin_roundf(across_[axis]);
      line[axis] = __builtin_roundf(down_[axis]);
      const float off = __builtin_fabsf(start - first[axis]) + last * __builtin_fabsf(across_[axis] - column[axis]) +
                        last * __builtin_fabsf(down_[axis] - line[axis]);
      if (!(off < 1.0f / 1024.0f)) return false;
      const float along = last * column[axis], down = last * line[axis];
      const float lowest = first[axis] + (along < 0.0f ? along : 0.0f) + (down < 0.0f ? down : 0.0f);
      const float highest = first[axis] + (along > 0.0f ? along : 0.0f) + (down > 0.0f ? down : 0.0f);
      if (!(lowest >= 0.0f) || !(highest <= limit_[axis] - 1.0f)) return false;
    }
    const auto bytes = [&source](const float* at) {
      return static_cast<std::int64_t>(at[1]) * source.pitch + static_cast<std::int64_t>(at[0]) * source.channels;
    };
    *copy = {bytes(first), bytes(column), bytes(line)};
    return true;
  }

  // Starts an output line.
  void enter(std::int64_t line) {
    const float at = static_cast<float>(line) + 0.5f;
    for (int axis = 0; axis < 2; ++axis) line_start_[axis] = down_[axis] * at + start_[axis];
    if (cells_ <= 0) return;
    const std::int32_t side = cells_ + 3;
    const float cell = at * (static_cast<float>(cells_) / size_);
    const std::int32_t first = cell < static_cast<float>(cells_ - 1) ? static_cast<std::int32_t>(cell) : cells_ - 1;
    float weights[4];
    spline(cell - static_cast<float>(first), weights);
    for (int axis = 0; axis < 2; ++axis)
      for (std::int32_t k = 0; k < side; ++k) {
        float total = 0.0f;
        for (std::int32_t i = 0; i < 4; ++i) total += weights[i] * field_[(axis * side + first + i) * side + k];
        controls_[axis][k] = total * size_;
      }
  }

  // x, y of the columns from `first` on; `padded` of them, a multiple of kLanes.
  void positions(std::int64_t first, std::int64_t padded, float* x, float* y) const {
    const float begin = static_cast<float>(first) + 0.5f;
    const float ax = across_[0], ay = across_[1], sx = line_start_[0], sy = line_start_[1];
    FASTMTL_EACH_NUMBERED_LANE(i, padded) {
      const float u = begin + static_cast<float>(i);
      x[i] = ax * u + sx;
      y[i] = ay * u + sy;
    }
    if (cells_ > 0) bend(begin, padded, x, y);
  }

  // Splits positions along an axis into a whole pixel and the share of the next one. What is far outside, or NaN,
  // becomes -2, where no neighbour is inside.
  void split(int axis, std::int64_t padded, const float* position, std::int32_t* whole, float* share) const {
    const float limit = limit_[axis] + 1.0f;
    FASTMTL_EACH_LANE(i, padded) {
      float x = position[i];
      x = (x > -2.0f) & (x < limit) ? x : -2.0f;
      const std::int32_t truncated = static_cast<std::int32_t>(x);
      const std::int32_t below = truncated - (static_cast<float>(truncated) > x ? 1 : 0);
      whole[i] = below;
      share[i] = x - static_cast<float>(below);
    }
  }

 private:
  void bend(float begin, std::int64_t padded, float* x, float* y) const {
    const float per_column = static_cast<float>(cells_) / size_;
    for (std::int64_t i = 0; i < padded; ++i) {
      const float cell = (begin + static_cast<float>(i)) * per_column;
      const std::int32_t first = cell < static_cast<float>(cells_ - 1) ? static_cast<std::int32_t>(cell) : cells_ - 1;
      float weights[4];
      spline(cell - static_cast<float>(first), weights);
      float across = 0.0f, below = 0.0f;
      for (int k = 0; k < 4; ++k) {
        across += weights[k] * controls_[0][first + k];
        below += weights[k] * controls_[1][first + k];
      }
      x[i] += across_[0] * across + down_[0] * below;
      y[i] += across_[1] * across + down_[1] * below;
    }
  }

  float size_;
  std::int32_t cells_;
  const float* field_;
  float across_[2], down_[2], start_[2], limit_[2], line_start_[2];
  float controls_[2][kMostControls];
};

// The four neighbours of a block of positions.
struct Neighbours {
  alignas(64) float x[kBlock], y[kBlock], right[kBlock], below[kBlock];
  alignas(64) std::int32_t left[kBlock], above[kBlock];

  void locate(const Geometry& geometry, std::int64_t first, std::int64_t padded) {
    geometry.positions(first, padded, x, y);
    geometry.split(0, padded, x, left, right);
    geometry.split(1, padded, y, above, below);
  }

  // Any positions inside the source, for pixels that are copied.
  void be_inside(std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) x[i] = y[i] = 0.0f;
  }

  // Whether that holds for all of the first `count` positions.
  bool all_inside(const Source& source, std::int64_t count) const {
    std::int32_t signs = 0;
    for (std::int64_t i = 0; i < count; ++i) signs |= signs_at(source, i);
    return signs >= 0;
  }

  // Whether all four are in the source.
  bool is_inside(const Source& source, std::int64_t i) const { return signs_at(source, i) >= 0; }

  // Whether none is.
  bool is_outside(const Source& source, std::int64_t i) const {
    return (left[i] < -1) | (above[i] < -1) | (left[i] >= source.width) | (above[i] >= source.height);
  }

 private:
  std::int32_t signs_at(const Source& source, std::int64_t i) const {
    return left[i] | above[i] | (source.width - 2 - left[i]) | (source.height - 2 - above[i]);
  }
};

}  // namespace
}  // namespace FASTMTL_ISA
}  // namespace fastmtl
