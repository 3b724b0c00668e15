// Reinhard's colour transfer: pixels to a perceptual space, its moments, and back through one affine map per channel.
#include "core/vec_pow.hpp"
#include "stain/stain_block.hpp"
#include "stain/stain_store.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// CIE LAB of sRGB under D65, with the rounded constants that all the peers share.
struct Cie {
  float linear[256];

  Cie() {
    for (int i = 0; i < 256; ++i) {
      const float v = static_cast<float>(i) / 255.0f;
      linear[i] = v > 0.04045f ? power_unit((v + 0.055f) / 1.055f, 2.4f) : v / 12.92f;
    }
  }

  static float curve(float t) { return t > 0.008856f ? power_unit(t, 1.0f / 3.0f) : 7.787f * t + 16.0f / 116.0f; }
  static float cube(float t) { return t > 0.2068966f ? t * t * t : (t - 16.0f / 116.0f) / 7.787f; }
  static float encode(float v) {
    const float u = clip(v, 0.0f, 1.0f);
    return 255.0f * (u > 0.0031308f ? 1.055f * power_unit(u, 1.0f / 2.4f) - 0.055f : 12.92f * u);
  }

  void forward(const StainBlock& block, float (*lab)[kStainBlock]) const {
    for (int c = 0; c < 3; ++c)
      for (std::int64_t i = 0; i < block.count; ++i) lab[c][i] = linear[block.rgb[c][i]];
    for (std::int64_t i = 0; i < block.count; ++i) {
      const float r = lab[0][i], g = lab[1][i], b = lab[2][i];
      const float x = curve((0.412453f * r + 0.357580f * g + 0.180423f * b) / 0.95047f);
      const float y = curve(0.212671f * r + 0.715160f * g + 0.072169f * b);
      const float z = curve((0.019334f * r + 0.119193f * g + 0.950227f * b) / 1.08883f);
      lab[0][i] = 116.0f * y - 16.0f;
      lab[1][i] = 500.0f * (x - y);
      lab[2][i] = 200.0f * (y - z);
    }
  }

  static void back(std::int64_t count, float (*lab)[kStainBlock]) {
    for (std::int64_t i = 0; i < count; ++i) {
      const float at = (lab[0][i] + 16.0f) / 116.0f;
      const float x = 0.95047f * cube(lab[1][i] / 500.0f + at), y = cube(at);
      const float z = 1.08883f * cube(at - lab[2][i] / 200.0f);
      lab[0][i] = encode(3.240479f * x - 1.537150f * y - 0.498535f * z);
      lab[1][i] = encode(-0.969256f * x + 1.875991f * y + 0.041556f * z);
      lab[2][i] = encode(0.055648f * x - 0.204043f * y + 1.057311f * z);
    }
  }
};

// Ruderman's l-alpha-beta: the logarithms of cone responses, decorrelated.
struct Ruderman {
  void forward(const StainBlock& block, float (*lab)[kStainBlock]) const {
    for (std::int64_t i = 0; i < block.count; ++i) {
      const float r = block.rgb[0][i], g = block.rgb[1][i], b = block.rgb[2][i];
      const float l = cone(0.3811f * r + 0.5783f * g + 0.0402f * b);
      const float m = cone(0.1967f * r + 0.7244f * g + 0.0782f * b);
      const float s = cone(0.0241f * r + 0.1288f * g + 0.8444f * b);
      lab[0][i] = 0.577350269f * (l + m + s);
      lab[1][i] = 0.408248290f * (l + m - 2.0f * s);
      lab[2][i] = 0.707106781f * (l - m);
    }
  }

  static float cone(float v) { return v > 0.0f ? log_normal(v > 1e-30f ? v : 1e-30f) : -36.0436533f; }

  static void back(std::int64_t count, float (*lab)[kStainBlock]) {
    for (std::int64_t i = 0; i < count; ++i) {
      const float x = 0.577350269f * lab[0][i], y = 0.408248290f * lab[1][i], z = 0.707106781f * lab[2][i];
      const float l = exp_within(clip(x + y + z, -80.0f, 20.0f)), m = exp_within(clip(x + y - z, -80.0f, 20.0f));
      const float s = exp_within(clip(x - 2.0f * y, -80.0f, 20.0f));
      lab[0][i] = clip(4.46866976f * l - 3.58867690f * m + 0.119602255f * s, 0.0f, 255.0f);
      lab[1][i] = clip(-1.21971616f * l + 2.38308795f * m - 0.162626280f * s, 0.0f, 255.0f);
      lab[2][i] = clip(0.0585084767f * l - 0.261078320f * m + 1.20566565f * s, 0.0f, 255.0f);
    }
  }
};

// OpenCV's 8-bit LAB: 2.55 L, a + 128 and b + 128, rounded (`half`) or, as the peers write it back, cut off.
void to_eight_bit(std::int64_t count, float half, float (*lab)[kStainBlock]) {
  for (std::int64_t i = 0; i < count; ++i) {
    lab[0][i] = static_cast<float>(static_cast<int>(clip(lab[0][i] * 2.55f, 0.0f, 255.0f) + half)) / 2.55f;
    lab[1][i] = static_cast<float>(static_cast<int>(clip(lab[1][i] + 128.0f, 0.0f, 255.0f) + half)) - 128.0f;
    lab[2][i] = static_cast<float>(static_cast<int>(clip(lab[2][i] + 128.0f, 0.0f, 255.0f) + half)) - 128.0f;
  }
}

template <typename Space>
void add_lab(const Space& space, const StainBlock& block, bool eight_bit, double* out) {
  float lab[3][kStainBlock];
  space.forward(block, lab);
  if (eight_bit) to_eight_bit(block.count, 0.5f, lab);
  for (int c = 0; c < 3; ++c) {
    float sum = 0.0f, squares = 0.0f, n = 0.0f;
    for (std::int64_t i = 0; i < block.count; ++i) {
      const float keep = block.inside == nullptr || block.inside[i] != 0 ? 1.0f : 0.0f;
      n += keep;
      sum += keep * lab[c][i];
      squares += keep * lab[c][i] * lab[c][i];
    }
    out[0] += c == 0 ? static_cast<double>(n) : 0.0;
    out[1 + c] += static_cast<double>(sum);
    out[4 + c] += static_cast<double>(squares);
  }
}

template <typename Space>
void transfer(const Space& space, const StainBlock& block, bool eight_bit, const float* m,
              float (*values)[kStainBlock]) {
  space.forward(block, values);
  if (eight_bit) to_eight_bit(block.count, 0.5f, values);
  for (int c = 0; c < 3; ++c)
    for (std::int64_t i = 0; i < block.count; ++i) values[c][i] = values[c][i] * m[c] + m[3 + c];
  if (eight_bit) to_eight_bit(block.count, 1e-4f, values);
  space.back(block.count, values);
}

const Cie& cie() {
  static const Cie kSpace;
  return kSpace;
}

}  // namespace

// partials [batch, chunks, 7]: pixels, sums and sums of squares of the three channels; space 0: CIE LAB, 1: Ruderman's.
void stain_lab_moments(const StainImages& images, int space, bool eight_bit, std::int64_t chunk, double* partials,
                       int threads) {
  const std::int64_t chunks = (images.pixels + chunk - 1) / chunk, units = images.batch * chunks;
  const Cie& perceptual = cie();
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / chunks, begin = unit % chunks * chunk;
    const std::int64_t end = begin + chunk < images.pixels ? begin + chunk : images.pixels;
    double* out = partials + unit * 7;
    for (int k = 0; k < 7; ++k) out[k] = 0.0;
    StainBlock block;
    for (std::int64_t first = begin; first < end; first += kStainBlock) {
      read_block(images, b, first, end - first < kStainBlock ? end - first : kStainBlock, block);
      if (space == 0)
        add_lab(perceptual, block, eight_bit, out);
      else
        add_lab(Ruderman{}, block, eight_bit, out);
    }
  }
}

// coefficients [batch, 26]: factor and addend of the three channels, the colour of `write_block`, keep, outside.
void stain_lab_apply(const StainImages& images, int space, bool eight_bit, const float* coefficients,
                     const StainOutput& output, int threads) {
  const std::int64_t blocks = (images.pixels + kStainBlock - 1) / kStainBlock, units = images.batch * blocks;
  const Cie& perceptual = cie();
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (std::int64_t unit = 0; unit < units; ++unit) {
    const std::int64_t b = unit / blocks, first = unit % blocks * kStainBlock, left = images.pixels - first;
    const float* own = coefficients + b * 26;
    StainBlock block;
    float values[3][kStainBlock];
    read_block(images, b, first, left < kStainBlock ? left : kStainBlock, block);
    if (own[24] > 0.0f)
      as_is(block, values);
    else if (space == 0)
      transfer(perceptual, block, eight_bit, own, values);
    else
      transfer(Ruderman{}, block, eight_bit, own, values);
    write_block(block, own + 6, own[25], output, b, first, values);
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
