// The last steps of every normaliser: background, colour, channel statistics, rounding, store.
// Only *_cpu.cpp files may include it.
#pragma once

#include "core/block_io.hpp"
#include "stain/stain_block.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

inline float clip(float value, float low, float high) {
  const float above = value > low ? value : low;
  return above < high ? above : high;
}

inline void as_is(const StainBlock& block, float (*values)[kStainBlock]) {
  for (int c = 0; c < 3; ++c)
    for (std::int64_t i = 0; i < block.count; ++i) values[c][i] = static_cast<float>(block.rgb[c][i]);
}

inline void store_bytes(const float* values, std::uint8_t* out, std::int64_t stride, std::int64_t count, float add) {
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i)
      out[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(values[i] + add));
  } else {
    for (std::int64_t i = 0; i < count; ++i)
      out[i * stride] = static_cast<std::uint8_t>(static_cast<std::int32_t>(values[i] + add));
  }
}

// coefficients: F [3, 3], f, low, high [3] each. `values` are overwritten.
inline void write_block(const StainBlock& block, const float* coefficients, float outside, const StainOutput& output,
                        std::int64_t b, std::int64_t first, float (*values)[kStainBlock]) {
  const std::int64_t count = block.count;
  float colour[18];  // a copy: the compiler cannot know that `values` does not overlap the coefficients
  for (int k = 0; k < 18; ++k) colour[k] = coefficients[k];
  if (block.inside != nullptr)
    for (int c = 0; c < 3; ++c)
      for (std::int64_t i = 0; i < count; ++i) values[c][i] = block.inside[i] != 0 ? values[c][i] : outside;
  for (std::int64_t i = 0; i < count; ++i) {
    const float r = values[0][i], g = values[1][i], bl = values[2][i];
    values[0][i] = clip(colour[0] * r + colour[1] * g + colour[2] * bl + colour[9], colour[12], colour[15]);
    values[1][i] = clip(colour[3] * r + colour[4] * g + colour[5] * bl + colour[10], colour[13], colour[16]);
    values[2][i] = clip(colour[6] * r + colour[7] * g + colour[8] * bl + colour[11], colour[14], colour[17]);
  }
  for (int c = 0; c < 3; ++c) {
    const std::int64_t at = b * output.batch_stride + c * output.channel_stride + first * output.pixel_stride;
    if (output.type == Element::uint8) {
      // Rounding down adds 1e-4, because 17 restained to 16.999999 would become 16.
      store_bytes(values[c], static_cast<std::uint8_t*>(output.data) + at, output.pixel_stride, count,
                  output.rounding == 1 ? 0.5f : 1e-4f);
    } else {
      store(output.type, values[c], output.data, at, output.pixel_stride, count);
    }
  }
}

}  // namespace
}  // namespace FASTMTL_ISA
}  // namespace fastmtl
