// Runs of pixels as the stain kernels see them: three planes of bytes, their densities, and what is tissue.
// Included by *_cpu.cpp alone.
#pragma once

#include "core/vec_math.hpp"
#include "stain/stain.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kStainBlock = 1024;

struct StainBlock {
  const std::uint8_t* rgb[3];
  const std::uint8_t* inside;  // or nullptr
  std::int64_t count;
  std::uint8_t planes[3][kStainBlock];  // where interleaved pixels are taken apart
};

inline void read_block(const StainImages& images, std::int64_t b, std::int64_t first, std::int64_t count,
                       StainBlock& block) {
  block.count = count;
  block.inside = images.inside == nullptr ? nullptr : images.inside + b * images.pixels + first;
  const std::uint8_t* from = images.data + b * images.batch_stride + first * images.pixel_stride;
  for (int c = 0; c < 3; ++c) {
    const std::uint8_t* plane = from + c * images.channel_stride;
    if (images.pixel_stride == 1) {
      block.rgb[c] = plane;
      continue;
    }
    for (std::int64_t i = 0; i < count; ++i) block.planes[c][i] = plane[i * images.pixel_stride];
    block.rgb[c] = block.planes[c];
  }
}

inline void look_up(const float* table, const StainBlock& block, float (*values)[kStainBlock]) {
  for (int c = 0; c < 3; ++c)
    for (std::int64_t i = 0; i < block.count; ++i) values[c][i] = table[block.rgb[c][i]];
}

// keep [count]: 1 where the pixel counts as tissue.
inline void tissue(const StainMask& mask, std::int64_t b, const StainBlock& block, std::uint8_t* keep) {
  const std::uint8_t *r = block.rgb[0], *g = block.rgb[1], *bl = block.rgb[2];
  const std::int64_t count = block.count;
  const std::uint8_t limit = static_cast<std::uint8_t>(mask.limit);
  if (mask.kind == 1) {
    for (std::int64_t i = 0; i < count; ++i) keep[i] = (r[i] <= limit) & (g[i] <= limit) & (bl[i] <= limit);
  } else if (mask.kind == 2) {
    for (std::int64_t i = 0; i < count; ++i) keep[i] = (r[i] <= limit) | (g[i] <= limit) | (bl[i] <= limit);
  } else if (mask.kind == 3) {
    const float* tables = mask.tables + b * 3 * 256;
    for (std::int64_t i = 0; i < count; ++i)
      keep[i] = tables[r[i]] + tables[256 + g[i]] + tables[512 + bl[i]] < mask.threshold;
  } else {
    for (std::int64_t i = 0; i < count; ++i) keep[i] = 1;
  }
  if (block.inside != nullptr)
    for (std::int64_t i = 0; i < count; ++i) keep[i] &= block.inside[i] != 0;
}

// Two concentrations from two products, in place: the non-negative lasso of two unit vectors in closed form. If the
// minimum over the whole plane has a negative coefficient, the better of the two single atoms is the answer.
inline void lasso_pair(float& first, float& second, float product, float inverse) {
  const float both0 = (first - product * second) * inverse, both1 = (second - product * first) * inverse;
  const float only0 = first > 0.0f ? first : 0.0f, only1 = second > 0.0f ? second : 0.0f;
  const bool inner = (both0 >= 0.0f) & (both1 >= 0.0f), zeroth = only0 >= only1;
  first = inner ? both0 : zeroth ? only0 : 0.0f;
  second = inner ? both1 : zeroth ? 0.0f : only1;
}

}  // namespace
}  // namespace FASTMTL_ISA
}  // namespace fastmtl
