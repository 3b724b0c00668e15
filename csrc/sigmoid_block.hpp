// What the kernels of the sigmoid losses share: a block of one plane as float in L1, and the stable sigmoid.
//
// e = exp(-|x|), p = x >= 0 ? 1 / (1 + e) : e / (1 + e) and 1 - p the other way round: nothing cancels and nothing
// overflows. A logit of -infinity with target 0 adds exactly 0 to every sum, so masked elements and the padding of a
// last block are turned into that.
// Included by *_cpu.cpp alone (see vec_math.hpp for the namespace).
#pragma once

#include "block_io.hpp"
#include "planes.hpp"
#include "vec_math.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

constexpr std::int64_t kBlock = 512;  // pixels; the three buffers take 6 KiB
constexpr std::int64_t kLanes = 16;   // floats of the widest vector: loops run over whole multiples, with no remainder

struct Sigmoid {
  float e, p, q;  // exp(-|x|), the probability, 1 - p
};

inline Sigmoid sigmoid(float x) {
  const float e = exp_minus(__builtin_fabsf(x));
  const float r = 1.0f / (1.0f + e);
  const float small = e * r;
  return {e, x >= 0.0f ? r : small, x >= 0.0f ? small : r};
}

// One block of one plane as float: where it lies if it can be used as it is, else converted into a buffer.
struct Block {
  const float* logits;
  const float* target;
  alignas(64) float logits_buffer[kBlock];
  alignas(64) float target_buffer[kBlock];
  alignas(64) float valid[kBlock];
  std::int64_t count, padded;
  bool masked;

  void start(std::int64_t pixels, std::int64_t first) {
    const std::int64_t left = pixels - first;
    count = left < kBlock ? left : kBlock;
    padded = (count + kLanes - 1) / kLanes * kLanes;
    masked = false;
  }

  // Returns whether any element is valid. Expects `start`, as every other way of filling does.
  bool fill(const LossInputs& inputs, std::int64_t b, std::int64_t c, std::int64_t first) {
    if (inputs.mask.data != nullptr) {
      const Planes& mask = inputs.mask;
      const std::int64_t start = b * mask.batch + c * mask.channel;
      if (mask.pixel == 0) {
        if (static_cast<const std::uint8_t*>(mask.data)[start] == 0) return false;
      } else {
        load(Element::uint8, mask.data, start + first * mask.pixel, mask.pixel, count, valid);
        masked = true;
      }
    }
    logits = as_float(inputs.logits, b, c, first, -__builtin_inff(), logits_buffer);
    target = as_float(inputs.target, b, c, first, 0.0f, target_buffer);
    return true;
  }

  std::int64_t elements() const {
    if (!masked) return count;
    std::int64_t number = 0;
    for (std::int64_t i = 0; i < count; ++i) number += valid[i] != 0.0f;
    return number;
  }

  // Whether a loop over whole vectors may touch the tensor itself.
  bool direct(const Planes& planes) const {
    return planes.type == Element::float32 && planes.pixel == 1 && !masked && count == padded;
  }

  // `nothing` stands in for masked elements and fills the buffer up to whole vectors.
  const float* as_float(const Planes& planes, std::int64_t b, std::int64_t c, std::int64_t first, float nothing,
                        float* buffer) const {
    const std::int64_t start = b * planes.batch + c * planes.channel + first * planes.pixel;
    if (direct(planes)) return static_cast<const float*>(planes.data) + start;
    load(planes.type, planes.data, start, planes.pixel, count, buffer);
    return complete(buffer, nothing);
  }

  const float* complete(float* buffer, float nothing) const {
    if (masked)
      for (std::int64_t i = 0; i < count; ++i) buffer[i] = valid[i] != 0.0f ? buffer[i] : nothing;
    for (std::int64_t i = count; i < padded; ++i) buffer[i] = nothing;
    return buffer;
  }
};

// Calls sum(block, b, c) for every block of chunk number `unit` for which fill(block, b, c, first pixel) is true: the
// channels of one chunk go together, because with channels_last they share cache lines.
template <typename Fill, typename Sum>
inline void for_each_block(const LossInputs& inputs, const Chunks& chunks, std::int64_t unit, Fill fill, Sum sum) {
  const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
  const std::int64_t end = begin + chunks.pixels < inputs.pixels ? begin + chunks.pixels : inputs.pixels;
  Block block;
  for (std::int64_t first = begin; first < end; first += kBlock)
    for (std::int64_t c = 0; c < inputs.channels; ++c) {
      block.start(inputs.pixels, first);
      if (fill(block, b, c, first)) sum(block, b, c);
    }
}

// As Block::fill does.
template <typename Sum>
inline void for_each_block(const LossInputs& inputs, const Chunks& chunks, std::int64_t unit, Sum sum) {
  const auto fill = [&](Block& block, std::int64_t b, std::int64_t c, std::int64_t first) {
    return block.fill(inputs, b, c, first);
  };
  for_each_block(inputs, chunks, unit, fill, sum);
}

// Writes the gradient of chunk number `unit`: differentiate(block, b, c, values) fills `values` for block.padded
// elements; it is not called where `fill` is false, and the gradient is 0 there.
template <typename Fill, typename Differentiate>
inline void write_blocks(const LossInputs& inputs, const Chunks& chunks, std::int64_t unit, const Planes& gradient,
                         Fill fill, Differentiate differentiate) {
  const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
  const std::int64_t end = begin + chunks.pixels < inputs.pixels ? begin + chunks.pixels : inputs.pixels;
  Block block;
  alignas(64) float buffer[kBlock];
  for (std::int64_t first = begin; first < end; first += kBlock)
    for (std::int64_t c = 0; c < inputs.channels; ++c) {
      block.start(inputs.pixels, first);
      const std::int64_t start = b * gradient.batch + c * gradient.channel + first * gradient.pixel;
      const bool any = fill(block, b, c, first), direct = any && block.direct(gradient);
      float* values = direct ? static_cast<float*>(gradient.data) + start : buffer;
      if (any) {
        differentiate(block, b, c, values);
        if (block.masked)  // a NaN coefficient must not reach them either
          for (std::int64_t i = 0; i < block.count; ++i) values[i] = block.valid[i] != 0.0f ? values[i] : 0.0f;
      } else {
        for (float& value : buffer) value = 0.0f;
      }
      if (!direct) store(gradient.type, values, gradient.data, start, gradient.pixel, block.count);
    }
}

// As Block::fill does.
template <typename Differentiate>
inline void write_blocks(const LossInputs& inputs, const Chunks& chunks, std::int64_t unit, const Planes& gradient,
                         Differentiate differentiate) {
  const auto fill = [&](Block& block, std::int64_t b, std::int64_t c, std::int64_t first) {
    return block.fill(inputs, b, c, first);
  };
  write_blocks(inputs, chunks, unit, gradient, fill, differentiate);
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
