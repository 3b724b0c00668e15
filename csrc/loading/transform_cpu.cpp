// A block of output columns at a time: positions in vectors, the bytes of the four neighbours one by one (two words of
// four bytes hold the RGB of two adjacent pixels, which is faster than a gather), the rest in vectors again.
#include "loading/transform_geometry.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

template <typename Word>
inline Word load(const std::uint8_t* at) {
  Word word;
  __builtin_memcpy(&word, at, sizeof(Word));
  return word;
}

// The bytes r g b r' g' b' of two adjacent pixels, of the upper and of the lower line, in two words each.
struct Colours {
  alignas(64) std::uint32_t upper[2 * kBlock], lower[2 * kBlock];

  void read(const Source& source, const Neighbours& near, int outside, std::int64_t count) {
    const std::uint64_t grey = static_cast<std::uint64_t>(outside) * 0x010101010101u;
    const bool all_inside = near.all_inside(source, count);
    for (std::int64_t i = 0; i < count; ++i) {
      if (all_inside || near.is_inside(source, i)) {
        // Of eight bytes six are needed; the others belong to the source, too: there is a line below and one above.
        const std::uint8_t* at = source.pixels + near.above[i] * source.pitch + std::int64_t{near.left[i]} * 3;
        put(upper, i, load<std::uint64_t>(at));
        put(lower, i, load<std::uint64_t>(at + source.pitch - 2) >> 16);
      } else if (near.is_outside(source, i)) {
        put(upper, i, grey);
        put(lower, i, grey);
      } else {
        put(upper, i, two_pixels(source, near.above[i], near.left[i], grey));
        put(lower, i, two_pixels(source, near.above[i] + 1, near.left[i], grey));
      }
    }
  }

  // Bilinear levels.
  void sample(const Neighbours& near, std::int64_t padded, float (*levels)[kBlock]) const {
    FASTMTL_EACH_LANE(i, padded) {
      const float w11 = near.right[i] * near.below[i], w01 = near.right[i] - w11, w10 = near.below[i] - w11;
      const float w00 = 1.0f - near.right[i] - w10;
      const std::uint32_t a = upper[2 * i], b = upper[2 * i + 1], c = lower[2 * i], d = lower[2 * i + 1];
      levels[0][i] = w00 * byte(a, 0) + w01 * byte(a, 24) + w10 * byte(c, 0) + w11 * byte(c, 24);
      levels[1][i] = w00 * byte(a, 8) + w01 * byte(b, 0) + w10 * byte(c, 8) + w11 * byte(d, 0);
      levels[2][i] = w00 * byte(a, 16) + w01 * byte(b, 8) + w10 * byte(c, 16) + w11 * byte(d, 8);
    }
  }

 private:
  static float byte(std::uint32_t word, int shift) {
    return static_cast<float>(static_cast<std::int32_t>(word >> shift & 255u));
  }

  static void put(std::uint32_t* words, std::int64_t i, std::uint64_t both) {
    __builtin_memcpy(words + 2 * i, &both, sizeof(both));
  }

  static std::uint64_t two_pixels(const Source& source, std::int32_t line, std::int32_t column, std::uint64_t grey) {
    std::uint64_t both = 0;
    for (int next = 0; next < 2; ++next) {
      const std::uint8_t* at = source.at(line, column + next);
      const std::uint64_t pixel = at == nullptr ? grey & 0xffffffu : at[0] | at[1] << 8 | at[2] << 16;
      both |= pixel << 24 * next;
    }
    return both;
  }
};

// The levels of pixels `step` bytes apart.
inline void copy_levels(const std::uint8_t* at, std::int64_t step, std::int64_t count, float (*levels)[kBlock]) {
  if (step == 3) {  // known when compiled: vectors
    for (std::int64_t i = 0; i < count; ++i)
      for (int c = 0; c < 3; ++c) levels[c][i] = at[3 * i + c];
    return;
  }
  for (std::int64_t i = 0; i < count; ++i, at += step)
    for (int c = 0; c < 3; ++c) levels[c][i] = at[c];
}

// Nearly normal, mean 0 and variance 1: the four bytes of a hash of pixel and key, added.
inline float noise_of(std::uint32_t index, std::uint32_t key) {
  std::uint32_t h = index ^ key;
  h = (h ^ h >> 16) * 0x7FEB352Du;
  h = (h ^ h >> 15) * 0x846CA68Bu;
  h ^= h >> 16;
  const std::uint32_t total = (h & 255u) + (h >> 8 & 255u) + (h >> 16 & 255u) + (h >> 24);
  return (static_cast<float>(static_cast<std::int32_t>(total)) - 510.0f) * (1.0f / 147.80054f);
}

inline float clipped(float value, float low, float high) {
  value = value > low ? value : low;
  return value < high ? value : high;
}

inline std::int64_t padded_of(std::int64_t count) { return (count + kLanes - 1) & -kLanes; }

inline std::int64_t block_at(std::int64_t start, std::int64_t size) {
  return size - start < kBlock ? size - start : kBlock;
}

// Calls use(b, line, first column, count) for each block of an RGB source, with its bilinear levels.
template <typename Use>
void over_images(const TransformSources& from, int outside, Use use) {
  Neighbours near;
  Colours colours;
  alignas(64) float levels[3][kBlock] = {};
  for (std::int64_t b = from.first; b < from.last; ++b) {
    const Source source(from.table + 5 * b);
    Geometry geometry(from, b, source);
    Copy copy{};
    const bool copies = geometry.copies(source, &copy);
    if (copies) near.be_inside(kBlock);
    for (std::int64_t v = 0; v < from.size; ++v) {
      geometry.enter(v);
      for (std::int64_t u = 0; u < from.size; u += kBlock) {
        const std::int64_t count = block_at(u, from.size), padded = padded_of(count);
        if (copies) {
          copy_levels(source.pixels + copy.first + v * copy.line + u * copy.column, copy.column, count, levels);
        } else {
          near.locate(geometry, u, padded);
          colours.read(source, near, outside, count);
          colours.sample(near, padded, levels);
        }
        use(b, source, near, v, u, count, levels);
      }
    }
  }
}

// A channel of the four neighbours, 0 beyond the source.
inline std::uint32_t four_bytes(const Source& source, const Neighbours& near, std::int64_t i, std::int64_t channel) {
  const std::int64_t next = source.channels;
  if (near.is_inside(source, i)) {
    const std::uint8_t* at = source.pixels + near.above[i] * source.pitch + near.left[i] * next + channel;
    const std::uint8_t* under = at + source.pitch;
    if (next == 1) return load<std::uint16_t>(at) | std::uint32_t{load<std::uint16_t>(under)} << 16;
    return at[0] | std::uint32_t{at[next]} << 8 | std::uint32_t{under[0]} << 16 | std::uint32_t{under[next]} << 24;
  }
  std::uint32_t word = 0;
  if (near.is_outside(source, i)) return word;
  for (int corner = 0; corner < 4; ++corner) {
    const std::uint8_t* at = source.at(near.above[i] + corner / 2, near.left[i] + corner % 2);
    word |= at == nullptr ? 0u : std::uint32_t{at[channel]} << 8 * corner;
  }
  return word;
}

}  // namespace

void transform_images(const TransformSources& from, const TransformColour& colour, int outside, float* out) {
  const std::int64_t size = from.size;
  over_images(from, outside,
              [&](std::int64_t b, const Source&, const Neighbours&, std::int64_t v, std::int64_t u, std::int64_t count,
                  float (*levels)[kBlock]) {
                alignas(64) float values[kBlock];
                const float noise = colour.noise[b];
                const std::uint32_t key = colour.keys[b];
                for (std::int64_t c = 0; c < 3; ++c) {
                  const float* m = colour.colour + (b * 3 + c) * 4;
                  const float red = m[0], green = m[1], blue = m[2], add = m[3], scale = colour.scale[c],
                              shift = colour.shift[c];
                  const std::int64_t place = (c * size + v) * size + u;
                  if (noise > 0.0f) {
                    const std::uint32_t first = static_cast<std::uint32_t>(place);
                    FASTMTL_EACH_NUMBERED_LANE(i, padded_of(count)) {
                      const float value = red * levels[0][i] + green * levels[1][i] + blue * levels[2][i] + add +
                                          noise * noise_of(first + static_cast<std::uint32_t>(i), key);
                      values[i] = clipped(value, 0.0f, 255.0f) * scale + shift;
                    }
                  } else {
                    FASTMTL_EACH_LANE(i, padded_of(count)) {
                      const float value = red * levels[0][i] + green * levels[1][i] + blue * levels[2][i] + add;
                      values[i] = clipped(value, 0.0f, 255.0f) * scale + shift;
                    }
                  }
                  __builtin_memcpy(out + b * 3 * size * size + place, values,
                                   static_cast<std::size_t>(count) * sizeof(float));
                }
              });
}

void warp_images(const TransformSources& from, int outside, std::uint8_t* out, std::uint8_t* inside) {
  const std::int64_t size = from.size;
  over_images(from, outside,
              [&](std::int64_t b, const Source& source, const Neighbours& near, std::int64_t v, std::int64_t u,
                  std::int64_t count, float (*levels)[kBlock]) {
                const float right = static_cast<float>(source.width - 1),
                            bottom = static_cast<float>(source.height - 1);
                std::uint8_t* within = inside + (b * size + v) * size + u;
                for (std::int64_t i = 0; i < count; ++i)
                  within[i] = (near.x[i] >= 0.0f) & (near.y[i] >= 0.0f) & (near.x[i] <= right) & (near.y[i] <= bottom);
                for (std::int64_t c = 0; c < 3; ++c) {
                  std::uint8_t* line = out + ((b * 3 + c) * size + v) * size + u;
                  for (std::int64_t i = 0; i < count; ++i)
                    line[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(levels[c][i] + 0.5f));
                }
              });
}

void transform_maps(const TransformSources& from, float threshold, bool nearest, std::int64_t channels,
                    std::uint8_t* out) {
  const std::int64_t size = from.size;
  Neighbours near;
  alignas(64) std::uint32_t words[kBlock];  // the bytes of the four neighbours
  alignas(64) std::uint8_t above[kBlock];
  for (std::int64_t b = from.first; b < from.last; ++b) {
    const Source source(from.table + 5 * b);
    if (source.pixels == nullptr) continue;
    Geometry geometry(from, b, source);
    for (std::int64_t v = 0; v < size; ++v) {
      geometry.enter(v);
      for (std::int64_t u = 0; u < size; u += kBlock) {
        const std::int64_t count = block_at(u, size), padded = padded_of(count);
        near.locate(geometry, u, padded);
        for (std::int64_t c = 0; c < channels; ++c) {
          std::uint8_t* line = out + ((b * channels + c) * size + v) * size + u;
          if (nearest) {
            for (std::int64_t i = 0; i < count; ++i) {
              const std::uint8_t* at = source.at(near.above[i] + (near.below[i] >= 0.5f),
                                                 near.left[i] + (near.right[i] >= 0.5f));
              line[i] = at == nullptr ? 0 : at[c];
            }
            continue;
          }
          for (std::int64_t i = 0; i < count; ++i) words[i] = four_bytes(source, near, i, c);
          FASTMTL_EACH_LANE(i, padded) {
            const float w11 = near.right[i] * near.below[i], w01 = near.right[i] - w11, w10 = near.below[i] - w11;
            const float w00 = 1.0f - near.right[i] - w10;
            const std::uint32_t a = words[i];
            const float level = w00 * static_cast<float>(static_cast<std::int32_t>(a & 255u)) +
                                w01 * static_cast<float>(static_cast<std::int32_t>(a >> 8 & 255u)) +
                                w10 * static_cast<float>(static_cast<std::int32_t>(a >> 16 & 255u)) +
                                w11 * static_cast<float>(static_cast<std::int32_t>(a >> 24));
            above[i] = level > threshold;
          }
          __builtin_memcpy(line, above, static_cast<std::size_t>(count));
        }
      }
    }
  }
}

void add_noise(const TransformColour& colour, std::int64_t size, std::int64_t first, std::int64_t last, float* images) {
  const std::int32_t pixels = static_cast<std::int32_t>(size * size);
  for (std::int64_t b = first; b < last; ++b) {
    const std::uint32_t key = colour.keys[b];
    for (std::int32_t c = 0; c < 3; ++c) {
      const float low = colour.shift[c], high = colour.shift[c] + 255.0f * colour.scale[c];
      const float deviation = colour.noise[b] * colour.scale[c];
      float* __restrict plane = images + (b * 3 + c) * pixels;
      const std::uint32_t begin = static_cast<std::uint32_t>(c) * static_cast<std::uint32_t>(pixels);
      for (std::int32_t i = 0; i < pixels; ++i) {
        const float value = plane[i] + deviation * noise_of(begin + static_cast<std::uint32_t>(i), key);
        plane[i] = clipped(value, low, high);
      }
    }
  }
}

bool is_constant(const std::uint8_t* pixels, std::int64_t count, std::int64_t channels) {
  for (std::int64_t begin = channels; begin < count * channels; begin += 4096) {
    const std::int64_t end = begin + 4096 < count * channels ? begin + 4096 : count * channels;
    std::uint8_t differs = 0;
    for (std::int64_t i = begin; i < end; ++i) differs |= pixels[i] ^ pixels[i - channels];
    if (differs != 0) return false;
  }
  return true;
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
