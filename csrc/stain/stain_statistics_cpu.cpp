// What a stain estimate is made of: moments of the density, and histograms of angle, concentration and colour.
#include "stain/stain_block.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

void add_moments(const float (*od)[kStainBlock], const std::uint8_t* keep, std::int64_t count, double* out) {
  float n = 0.0f, s0 = 0.0f, s1 = 0.0f, s2 = 0.0f;
  float rr = 0.0f, rg = 0.0f, rb = 0.0f, gg = 0.0f, gb = 0.0f, bb = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    const float k = static_cast<float>(keep[i]);
    const float r = k * od[0][i], g = k * od[1][i], b = k * od[2][i];
    n += k;
    s0 += r;
    s1 += g;
    s2 += b;
    rr += r * r;
    rg += r * g;
    rb += r * b;
    gg += g * g;
    gb += g * b;
    bb += b * b;
  }
  const float sums[kStainMoments] = {n, s0, s1, s2, rr, rg, rb, gg, gb, bb};
  for (int k = 0; k < kStainMoments; ++k) out[k] += static_cast<double>(sums[k]);
}

template <bool kLasso>
void concentration_bins(const float (*od)[kStainBlock], std::int64_t count, const float* m, const float* lasso,
                        const float* scale, std::int32_t (*bins)[kStainBlock]) {
  constexpr float kTop = kConcentrationBins - 1;
  const float product = kLasso ? lasso[0] : 0.0f, inverse = kLasso ? lasso[1] : 1.0f;
  const float m0 = m[0], m1 = m[1], m2 = m[2], m3 = m[3], m4 = m[4], m5 = m[5], m6 = m[6], m7 = m[7];
  const float scale0 = scale[0], scale1 = scale[1];
  for (std::int64_t i = 0; i < count; ++i) {
    float c0 = m0 * od[0][i] + m1 * od[1][i] + m2 * od[2][i] + m3;
    float c1 = m4 * od[0][i] + m5 * od[1][i] + m6 * od[2][i] + m7;
    if (kLasso) lasso_pair(c0, c1, product, inverse);
    const float x0 = c0 * scale0, x1 = c1 * scale1;
    const float low0 = x0 > 0.0f ? x0 : 0.0f, low1 = x1 > 0.0f ? x1 : 0.0f;
    bins[0][i] = static_cast<std::int32_t>(low0 < kTop ? low0 : kTop);
    bins[1][i] = static_cast<std::int32_t>(low1 < kTop ? low1 : kTop);
  }
}

// Calls use(block) over slot `slot` of `slots` equal shares of an image.
template <typename Use>
void over_share(const StainImages& images, std::int64_t b, int slot, int slots, Use use) {
  const std::int64_t share = (images.pixels + slots - 1) / slots;
  const std::int64_t end = least(images.pixels, (slot + 1) * share);
  StainBlock block;
  for (std::int64_t first = slot * share; first < end; first += kStainBlock) {
    read_block(images, b, first, least(kStainBlock, end - first), block);
    use(block);
  }
}

}  // namespace

// partials [batch, chunks, kStainMoments] of runs of `chunk` pixels, written whole.
void stain_moments(const StainImages& images, const float* table, const StainMask& mask, std::int64_t chunk,
                   double* partials, int threads) {
  const std::int64_t chunks = (images.pixels + chunk - 1) / chunk, units = images.batch * chunks;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / chunks, begin = unit % chunks * chunk, end = least(begin + chunk, images.pixels);
    double* out = partials + unit * kStainMoments;
    for (int k = 0; k < kStainMoments; ++k) out[k] = 0.0;
    StainBlock block;
    float od[3][kStainBlock];
    std::uint8_t keep[kStainBlock];
    for (std::int64_t first = begin; first < end; first += kStainBlock) {
      read_block(images, b, first, least(kStainBlock, end - first), block);
      tissue(mask, b, block, keep);
      look_up(table, block, od);
      add_moments(od, keep, block.count, out);
    }
  }
}

// counts [batch, slots, kAngleBins + 1], zeros to add to: tissue by the diamond angle of (basis[0] od, basis[1] od),
// the last for what is no tissue or shorter than the root of `least_square`. basis [batch, 2, 3].
void stain_angles(const StainImages& images, const float* table, const StainMask& mask, const float* basis,
                  float least_square, std::int32_t* counts, int slots, int threads) {
  const std::int64_t units = images.batch * slots;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 1)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / slots;
    const float* from = basis + 6 * b;
    const float e[6] = {from[0], from[1], from[2], from[3], from[4], from[5]};
    std::int32_t* histogram = counts + unit * (kAngleBins + 1);
    float od[3][kStainBlock];
    std::uint8_t keep[kStainBlock];
    std::int32_t bin[kStainBlock];
    over_share(images, b, static_cast<int>(unit % slots), slots, [&](const StainBlock& block) {
      tissue(mask, b, block, keep);
      look_up(table, block, od);
      for (std::int64_t i = 0; i < block.count; ++i) {
        const float x = e[0] * od[0][i] + e[1] * od[1][i] + e[2] * od[2][i];
        const float y = e[3] * od[0][i] + e[4] * od[1][i] + e[5] * od[2][i];
        const float ax = x < 0.0f ? -x : x, ay = y < 0.0f ? -y : y;
        const float along = x / (ax + ay + 1e-30f);
        const float angle = y < 0.0f ? along - 1.0f : 1.0f - along;  // rises with atan2(y, x), from -2 to 2
        std::int32_t k = static_cast<std::int32_t>((angle + 2.0f) * (kAngleBins / 4.0f));
        k = k < kAngleBins - 1 ? k : kAngleBins - 1;
        const bool counted = (keep[i] != 0) & (x * x + y * y >= least_square);
        bin[i] = counted ? k : kAngleBins;
      }
      for (std::int64_t i = 0; i < block.count; ++i) ++histogram[bin[i]];
    });
  }
}

// counts [batch, slots, 2, kConcentrationBins + 1], zeros to add to: every pixel inside the image by its two
// concentrations times scale [batch, 2] (bins per unit); the last for what is not inside.
void stain_concentrations(const StainImages& images, const float* table, const StainSolver& solver, const float* scale,
                          std::int32_t* counts, int slots, int threads) {
  constexpr int kRow = kConcentrationBins + 1;
  const std::int64_t units = images.batch * slots;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 1)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / slots;
    const float* m = solver.matrix + 8 * b;
    const bool lasso = solver.lasso != nullptr;
    std::int32_t* histogram = counts + unit * 2 * kRow;
    float od[3][kStainBlock];
    std::int32_t bins[2][kStainBlock];
    over_share(images, b, static_cast<int>(unit % slots), slots, [&](const StainBlock& block) {
      look_up(table, block, od);
      if (lasso)
        concentration_bins<true>(od, block.count, m, solver.lasso + 2 * b, scale + 2 * b, bins);
      else
        concentration_bins<false>(od, block.count, m, nullptr, scale + 2 * b, bins);
      if (block.inside != nullptr)
        for (std::int64_t i = 0; i < block.count; ++i)
          if (block.inside[i] == 0) bins[0][i] = bins[1][i] = kConcentrationBins;
      for (std::int64_t i = 0; i < block.count; ++i) {
        ++histogram[bins[0][i]];
        ++histogram[kRow + bins[1][i]];
      }
    });
  }
}

// Colours by the leading 7 bits of r, g and b, over all images: a bin's two levels and their shares give its mean
// exactly.
// index [2^21]: zeros, or 1 + the place of a colour that `entries` [capacity, kColourEntry] already holds. An entry is
// the bin, its pixels, the last bits' sums, and the same four of its tissue. Returns how many there are now.
std::int64_t stain_colours(const StainImages& images, const StainMask& mask, std::int32_t* index, std::int64_t* entries,
                           std::int64_t count) {
  std::uint8_t keep[kStainBlock];
  for (std::int64_t b = 0; b < images.batch; ++b)
    over_share(images, b, 0, 1, [&](const StainBlock& block) {
      tissue(mask, b, block, keep);
      for (std::int64_t i = 0; i < block.count; ++i) {
        if (block.inside != nullptr && block.inside[i] == 0) continue;
        const std::uint32_t r = block.rgb[0][i], g = block.rgb[1][i], bl = block.rgb[2][i];
        const std::uint32_t bin = ((r >> 1) << 14) | ((g >> 1) << 7) | (bl >> 1);
        if (index[bin] == 0) {
          std::int64_t* fresh = entries + count * kColourEntry;
          for (int k = 1; k < kColourEntry; ++k) fresh[k] = 0;
          fresh[0] = bin;
          index[bin] = static_cast<std::int32_t>(++count);
        }
        std::int64_t* entry = entries + std::int64_t{index[bin] - 1} * kColourEntry;
        const std::int64_t last[4] = {1, r & 1u, g & 1u, bl & 1u}, is_tissue = keep[i];
        for (int k = 0; k < 4; ++k) {
          entry[1 + k] += last[k];
          entry[5 + k] += is_tissue * last[k];
        }
      }
    });
  return count;
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
