// Bytes to densities to stains to normalised pixels, colour and channel statistics included: one read, one write.
#include "core/block_io.hpp"
#include "stain/stain_block.hpp"
#include "stain/stain_store.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// 2^y for -30 <= y <= 9; beyond, 2^ of the nearer end. Error: 3e-7 relative.
inline float exp2_within(float y) {
  const float low = y > -30.0f ? y : -30.0f, x = low < 9.0f ? low : 9.0f;
  const int n = static_cast<int>(x + 64.5f) - 64;  // truncation of what is positive: to nearest
  const float f = x - static_cast<float>(n);
  float q = 1.53533393e-4f * f + 1.33988462e-3f;
  q = q * f + 9.61843736e-3f;
  q = q * f + 5.55033247e-2f;
  q = q * f + 2.40226479e-1f;
  q = q * f + 6.93147203e-1f;
  q = q * f + 1.0f;
  return bits_of<float>(bits_of<std::int32_t>(q) + n * (1 << 23));
}

// values [3, count]: the restained pixel, 0..255.
template <bool kLasso>
void restain(const float (*od)[kStainBlock], std::int64_t count, const float* coefficients,
             float (*values)[kStainBlock]) {
  float m[24];  // a copy: the compiler cannot know that `values` does not overlap the coefficients
  for (int k = 0; k < 24; ++k) m[k] = coefficients[k];
  const float shift = m[23];
  for (std::int64_t i = 0; i < count; ++i) {
    const float r = od[0][i], g = od[1][i], b = od[2][i];
    float y0 = m[0] * r + m[1] * g + m[2] * b + m[9];
    float y1 = m[3] * r + m[4] * g + m[5] * b + m[10];
    float y2 = m[6] * r + m[7] * g + m[8] * b + m[11];
    if (kLasso) {
      lasso_pair(y0, y1, m[12], m[13]);
      const float c0 = y0, c1 = y1;
      y0 = m[14] * c0 + m[15] * c1 + m[20];
      y1 = m[16] * c0 + m[17] * c1 + m[21];
      y2 = m[18] * c0 + m[19] * c1 + m[22];
    }
    values[0][i] = clip(exp2_within(y0) - shift, 0.0f, 255.0f);
    values[1][i] = clip(exp2_within(y1) - shift, 0.0f, 255.0f);
    values[2][i] = clip(exp2_within(y2) - shift, 0.0f, 255.0f);
  }
}

}  // namespace

void stain_apply(const StainImages& images, const float* table, const float* coefficients, bool lasso,
                 const StainOutput& output, int threads) {
  const std::int64_t blocks = (images.pixels + kStainBlock - 1) / kStainBlock, units = images.batch * blocks;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / blocks, first = unit % blocks * kStainBlock, left = images.pixels - first;
    const float* own = coefficients + b * kStainCoefficients;
    StainBlock block;
    float od[3][kStainBlock], values[3][kStainBlock];
    read_block(images, b, first, left < kStainBlock ? left : kStainBlock, block);
    if (own[42] > 0.0f) {
      as_is(block, values);
    } else {
      look_up(table, block, od);
      if (lasso)
        restain<true>(od, block.count, own, values);
      else
        restain<false>(od, block.count, own, values);
    }
    write_block(block, own + 24, own[43], output, b, first, values);
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
