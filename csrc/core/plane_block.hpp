// A block of elements of logits, target and mask as float in L1: what the kernels of elementwise losses work on. It
// runs along the pixels of one plane or, where planes are small, along the planes of a group at one pixel.
// Only *_cpu.cpp files may include it.
#pragma once

#include "core/block_io.hpp"
#include "core/planes.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

inline Distance distance_of(float target) { return bits_of<Distance>(__builtin_fabsf(target - 0.5f)); }

inline Distance farther(Distance a, Distance b) { return a > b ? a : b; }

// Calls body(start, stride, done, number) for runs of evenly spaced planes of [first, first + count); `start` is the
// offset of the first pixel, in elements. Dense tensors have one run, others one a sample.
template <typename Body>
inline void for_each_run(const Planes& planes, std::int64_t channels, std::int64_t first, std::int64_t count,
                         Body body) {
  if (channels == 1) return body(first * planes.batch, planes.batch, std::int64_t{0}, count);
  if (channels * planes.channel == planes.batch)
    return body(first * planes.channel, planes.channel, std::int64_t{0}, count);
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t b = (first + done) / channels, c = (first + done) % channels;
    const std::int64_t number = channels - c < count - done ? channels - c : count - done;
    body(b * planes.batch + c * planes.channel, planes.channel, done, number);
    done += number;
  }
}

// out[i] = pixel number `pixel` of plane first + i.
inline void load_across(const Planes& planes, std::int64_t channels, std::int64_t first, std::int64_t pixel,
                        std::int64_t count, float* out) {
  for_each_run(planes, channels, first, count,
               [&](std::int64_t start, std::int64_t stride, std::int64_t done, std::int64_t number) {
                 load(planes.type, planes.data, start + pixel * planes.pixel, stride, number, out + done);
               });
}

inline void store_across(const float* values, const Planes& planes, std::int64_t channels, std::int64_t first,
                         std::int64_t pixel, std::int64_t count) {
  for_each_run(planes, channels, first, count,
               [&](std::int64_t start, std::int64_t stride, std::int64_t done, std::int64_t number) {
                 store(planes.type, values + done, planes.data, start + pixel * planes.pixel, stride, number);
               });
}

// out[i] = values[c] of plane first + i, of which every `repeat` samples have a row [channels] of their own.
inline void spread_channels(const float* values, std::int64_t channels, std::int64_t repeat, std::int64_t first,
                            std::int64_t count, float* out) {
  std::int64_t b = first / channels, c = first % channels;
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = values[b / repeat * channels + c];
    if (++c == channels) ++b, c = 0;
  }
}

// One block as float: the tensor's own memory if a kernel can use it, else a converted copy in a buffer.
struct Block {
  const float* logits;
  const float* target;
  alignas(64) float logits_buffer[kBlock];
  alignas(64) float target_buffer[kBlock];
  alignas(64) float valid[kBlock];
  std::int64_t count, padded;
  bool masked;
  float nothing;  // the logit of masked elements and of the padding of the last vector; their target is 0

  explicit Block(float nothing) : nothing(nothing) {}

  // Of `length` elements, those from `first` on, at most `most` of them.
  void start(std::int64_t length, std::int64_t first, std::int64_t most = kBlock) {
    const std::int64_t left = length - first;
    count = left < most ? left : most;
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
    logits = as_float(inputs.logits, b, c, first, nothing, logits_buffer);
    target = as_float(inputs.target, b, c, first, 0.0f, target_buffer);
    return true;
  }

  // Pixel number `pixel` of the planes from `first` on.
  void fill_across(const LossInputs& inputs, std::int64_t first, std::int64_t pixel) {
    masked = inputs.mask.data != nullptr;
    if (masked) load_across(inputs.mask, inputs.channels, first, pixel, count, valid);
    logits = across(inputs.logits, inputs.channels, first, pixel, nothing, logits_buffer);
    target = across(inputs.target, inputs.channels, first, pixel, 0.0f, target_buffer);
  }

  // Adds 1 where an element takes part.
  void add_elements(float* numbers) const {
    if (masked)
      for (std::int64_t i = 0; i < count; ++i) numbers[i] += valid[i] != 0.0f ? 1.0f : 0.0f;
    else
      for (std::int64_t i = 0; i < count; ++i) numbers[i] += 1.0f;
  }

  // A NaN slope must not reach what is masked either.
  void clear_masked(float* values) const {
    if (masked)
      for (std::int64_t i = 0; i < count; ++i) values[i] = valid[i] != 0.0f ? values[i] : 0.0f;
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

  // `none` stands in for masked elements and fills the buffer up to whole vectors.
  const float* as_float(const Planes& planes, std::int64_t b, std::int64_t c, std::int64_t first, float none,
                        float* buffer) const {
    const std::int64_t start = b * planes.batch + c * planes.channel + first * planes.pixel;
    if (direct(planes)) return static_cast<const float*>(planes.data) + start;
    load(planes.type, planes.data, start, planes.pixel, count, buffer);
    return complete(buffer, none);
  }

  const float* across(const Planes& planes, std::int64_t channels, std::int64_t first, std::int64_t pixel, float none,
                      float* buffer) const {
    const bool even = channels == 1 ? planes.batch == 1 : planes.channel == 1 && planes.batch == channels;
    if (even && planes.type == Element::float32 && !masked && count == padded)
      return static_cast<const float*>(planes.data) + first + pixel * planes.pixel;
    load_across(planes, channels, first, pixel, count, buffer);
    return complete(buffer, none);
  }

  const float* complete(float* buffer, float none) const {
    if (masked)
      for (std::int64_t i = 0; i < count; ++i) buffer[i] = valid[i] != 0.0f ? buffer[i] : none;
    for (std::int64_t i = count; i < padded; ++i) buffer[i] = none;
    return buffer;
  }
};

// Calls sum(block, b, c) for every block of chunk number `unit` for which fill(block, b, c, first pixel) is true: the
// channels of one chunk go together, because with channels_last they share cache lines.
template <typename Fill, typename Sum>
inline void for_each_block(const LossInputs& inputs, const Chunks& chunks, std::int64_t unit, float nothing, Fill fill,
                           Sum sum) {
  const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
  const std::int64_t end = begin + chunks.pixels < inputs.pixels ? begin + chunks.pixels : inputs.pixels;
  Block block(nothing);
  for (std::int64_t first = begin; first < end; first += kBlock)
    for (std::int64_t c = 0; c < inputs.channels; ++c) {
      block.start(inputs.pixels, first);
      if (fill(block, b, c, first)) sum(block, b, c);
    }
}

// As Block::fill does.
template <typename Sum>
inline void for_each_block(const LossInputs& inputs, const Chunks& chunks, std::int64_t unit, float nothing, Sum sum) {
  const auto fill = [&](Block& block, std::int64_t b, std::int64_t c, std::int64_t first) {
    return block.fill(inputs, b, c, first);
  };
  for_each_block(inputs, chunks, unit, nothing, fill, sum);
}

// Writes the gradient of chunk number `unit`: differentiate(block, b, c, values) fills `values` for block.padded
// elements; it is not called where `fill` is false, and the gradient is 0 there.
template <typename Fill, typename Differentiate>
inline void write_blocks(const LossInputs& inputs, const Chunks& chunks, std::int64_t unit, const Planes& gradient,
                         float nothing, Fill fill, Differentiate differentiate) {
  const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
  const std::int64_t end = begin + chunks.pixels < inputs.pixels ? begin + chunks.pixels : inputs.pixels;
  Block block(nothing);
  alignas(64) float buffer[kBlock];
  for (std::int64_t first = begin; first < end; first += kBlock)
    for (std::int64_t c = 0; c < inputs.channels; ++c) {
      block.start(inputs.pixels, first);
      const std::int64_t start = b * gradient.batch + c * gradient.channel + first * gradient.pixel;
      const bool any = fill(block, b, c, first), direct = any && block.direct(gradient);
      float* values = direct ? static_cast<float*>(gradient.data) + start : buffer;
      if (any) {
        differentiate(block, b, c, values);
        block.clear_masked(values);
      } else {
        for (float& value : buffer) value = 0.0f;
      }
      if (!direct) store(gradient.type, values, gradient.data, start, gradient.pixel, block.count);
    }
}

// As Block::fill does.
template <typename Differentiate>
inline void write_blocks(const LossInputs& inputs, const Chunks& chunks, std::int64_t unit, const Planes& gradient,
                         float nothing, Differentiate differentiate) {
  const auto fill = [&](Block& block, std::int64_t b, std::int64_t c, std::int64_t first) {
    return block.fill(inputs, b, c, first);
  };
  write_blocks(inputs, chunks, unit, gradient, nothing, fill, differentiate);
}

// Calls sum(block) for every pixel of the planes of group number `unit`; block.count of them, block.padded in lanes.
template <typename Sum>
inline void for_each_pixel(const LossInputs& inputs, std::int64_t unit, float nothing, Sum sum) {
  const std::int64_t size = group_planes(inputs), first = unit * size;
  Block block(nothing);
  block.start(inputs.batch * inputs.channels, first, size);
  for (std::int64_t pixel = 0; pixel < inputs.pixels; ++pixel) {
    block.fill_across(inputs, first, pixel);
    sum(block);
  }
}

// Writes the gradient of the planes of group number `unit`: differentiate(block, values) at each pixel.
template <typename Differentiate>
inline void write_pixels(const LossInputs& inputs, std::int64_t unit, const Planes& gradient, float nothing,
                         Differentiate differentiate) {
  alignas(64) float values[kBlock];
  std::int64_t pixel = 0;
  for_each_pixel(inputs, unit, nothing, [&](const Block& block) {
    differentiate(block, values);
    block.clear_masked(values);
    store_across(values, gradient, inputs.channels, unit * group_planes(inputs), pixel++, block.count);
  });
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
