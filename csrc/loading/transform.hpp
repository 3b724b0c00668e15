// From decoded pixels to a batch: resampling through an affine matrix and a smooth field, colour, noise, normalisation;
// and the same geometry for maps. transform_triton.py does the same on a GPU.
//
// A call does the rows [first, last) of the batch on the calling thread, so that the loader's own threads share it.
#pragma once

#include <cstdint>

#include "core/isa.hpp"

namespace fastmtl {

// What is resampled, of each row of the batch, to size x size pixels.
struct TransformSources {
  const std::int64_t* table;  // [B, 5]: address, bytes from line to line, height, width, interleaved channels
  const float* matrix;        // [B, 2, 3]: from output positions to source positions, both 0..1
  // [B, 2, side, side]: control points of a uniform cubic B-spline over the output, of side - 3 cells a side: x and y
  // shifts in fractions of the output. side 0: no field.
  const float* field;
  std::int64_t side;
  std::int64_t size, first, last;
};

// clip(colour (r, g, b, 1) + noise n, 0, 255) scale + shift, for n nearly normal.
struct TransformColour {
  const float* colour;         // [B, 3, 4]
  const float* noise;          // [B], standard deviation in grey levels
  const std::uint32_t* keys;   // [B], of the noise
  const float *scale, *shift;  // [3]
};

FASTMTL_FOR_EACH_ISA(
    // Bilinear samples of RGB, grey level `outside` beyond the source: out [B, 3, size, size].
    void transform_images(const TransformSources& from, const TransformColour& colour, int outside, float* out);
    // The same rounded to whole levels; inside [B, size, size]: 0 where the background contributes.
    void warp_images(const TransformSources& from, int outside, std::uint8_t* out, std::uint8_t* inside);
    // The first `channels` channels of maps, 0 beyond: 1 where the bilinear sample is above `threshold`, or, if
    // `nearest`, the nearest pixel's value. out [B, channels, size, size]; rows of address 0 are left alone.
    void transform_maps(const TransformSources& from, float threshold, bool nearest, std::int64_t channels,
                        std::uint8_t* out);
    // images [B, 3, size, size], normalised as by transform_images: plus noise, clipped to the range of 0..255.
    void add_noise(const TransformColour& colour, std::int64_t size, std::int64_t first, std::int64_t last,
                   float* images);
    // Whether all `count` pixels equal the first.
    bool is_constant(const std::uint8_t* pixels, std::int64_t count, std::int64_t channels);)

}  // namespace fastmtl
