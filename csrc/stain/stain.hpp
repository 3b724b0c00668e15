// Stain statistics and their application, over RGB bytes. The definition is fastmtl/reference/stain_normalize.py.
//
// A pixel's optical density comes from a table of 256 numbers, so that every convention is the same code. What is
// estimated are counts in histograms, integers, so that no result depends on the number of threads.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "core/isa.hpp"

namespace fastmtl {

struct StainImages {
  const std::uint8_t* data;
  std::int64_t batch, pixels;
  std::int64_t batch_stride, channel_stride, pixel_stride;  // pixel_stride 1: planes; 3: interleaved
  const std::uint8_t* inside;  // [batch, pixels], 0 where a pixel is no tissue whatever it looks like; or nullptr
};

// Which pixels are tissue. kind 0: all; 1: the largest of r, g, b is at most `limit`; 2: the smallest is;
// 3: red[r] + green[g] + blue[b] < threshold, with tables [batch, 3, 256].
struct StainMask {
  int kind, limit;
  const float* tables;
  float threshold;
};

// How densities become concentrations: [P | p] of each sample, [batch, 2, 4]. Lasso: b = P od + p, then the
// non-negative minimum for two unit vectors, lasso [batch, 2] being their product g and 1 / (1 - g^2). nullptr: c = b.
struct StainSolver {
  const float* matrix;
  const float* lasso;
};

// One sample's way from densities to output, [batch, kStainCoefficients]:
//   b = P od + p                  P [3, 3], p [3]           0 .. 11
//   c = lasso(b)                  g, 1 / (1 - g^2)          12, 13  (only with `lasso`; else y = b)
//   y = R c + r                   R [3, 2], r [3]           14 .. 22
//   v = clip(2^y - shift, 0, 255) shift                     23
//   w = clip(F v + f, low, high)  F [3, 3], f, low, high    24 .. 41
//   keep > 0: v is the pixel as it was                      42
//   outside: v where inside is 0                            43
constexpr int kStainCoefficients = 44;

struct StainOutput {
  void* data;
  Element type;
  std::int64_t batch_stride, channel_stride, pixel_stride;
  int rounding;  // of uint8: 0 down, 1 to nearest even
};

constexpr int kStainMoments = 10;         // tissue pixels, sums of od, sums of products rr rg rb gg gb bb
constexpr int kAngleBins = 16384;         // of the diamond angle, -2 .. 2
constexpr int kConcentrationBins = 8192;  // 0 .. the sample's range; the first also holds what is negative
constexpr int kColourEntry = 9;

FASTMTL_FOR_EACH_ISA(
    void stain_moments(const StainImages& images, const float* table, const StainMask& mask, std::int64_t chunk,
                       double* partials, int threads);
    void stain_angles(const StainImages& images, const float* table, const StainMask& mask, const float* basis,
                      float least_square, std::int32_t* counts, int slots, int threads);
    void stain_concentrations(const StainImages& images, const float* table, const StainSolver& solver,
                              const float* scale, std::int32_t* counts, int slots, int threads);
    std::int64_t stain_colours(const StainImages& images, const StainMask& mask, std::int32_t* index,
                               std::int64_t* entries, std::int64_t count);
    void stain_apply(const StainImages& images, const float* table, const float* coefficients, bool lasso,
                     const StainOutput& output, int threads);
    void stain_lab_moments(const StainImages& images, int space, bool eight_bit, std::int64_t chunk, double* partials,
                           int threads);
    void stain_lab_apply(const StainImages& images, int space, bool eight_bit, const float* coefficients,
                         const StainOutput& output, int threads);
    double stain_dictionary(const double* density, const double* weight, std::int64_t count, double penalty,
                            int iterations, double tolerance, double* atoms);)

}  // namespace fastmtl
