// One block of pixels across all channels, as the softmax kernels read it: logits as float, class numbers as int32.
// Included by *_cpu.cpp alone (see numbers.hpp for the namespace).
#pragma once

#include "block_io.hpp"
#include "dice_ce.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {

constexpr std::int32_t kNoClass = -1, kOutsideClass = -2;

// out[i] = the class number at first + i * stride, kNoClass for ignore_index, kOutsideClass for what is no class.
template <typename T, typename Wide>
void classes_as(const SoftmaxProblem& problem, std::int64_t first, std::int64_t stride, std::int64_t count,
                std::int32_t* __restrict out) {
  const T* source = static_cast<const T*>(problem.target.data) + first;
  const auto ignored = static_cast<Wide>(problem.ignore_index), channels = static_cast<Wide>(problem.channels);
  const bool ignores = static_cast<std::int64_t>(ignored) == problem.ignore_index;
  const auto number = [=](T value) {
    const auto wide = static_cast<Wide>(value);
    const auto inside = (wide >= 0) & (wide < channels) ? static_cast<std::int32_t>(wide) : kOutsideClass;
    return ignores & (wide == ignored) ? kNoClass : inside;
  };
  if (stride == 1)
    for (std::int64_t i = 0; i < count; ++i) out[i] = number(source[i]);
  else
    for (std::int64_t i = 0; i < count; ++i) out[i] = number(source[i * stride]);
}

inline void load_classes(const SoftmaxProblem& problem, std::int64_t first, std::int64_t stride, std::int64_t count,
                         std::int32_t* out) {
  switch (problem.target.type) {
    case Element::uint8:
    case Element::boolean: return classes_as<std::uint8_t, std::int32_t>(problem, first, stride, count, out);
    case Element::int16: return classes_as<std::int16_t, std::int32_t>(problem, first, stride, count, out);
    case Element::int32: return classes_as<std::int32_t, std::int32_t>(problem, first, stride, count, out);
    default: return classes_as<std::int64_t, std::int64_t>(problem, first, stride, count, out);
  }
}

struct SoftmaxBlock {
  // Logits of channel c begin at logits + c * logits_stride: where they lie if they can be used so, else a buffer.
  const float* logits;
  std::int64_t logits_stride;
  std::int64_t block, count, padded;
  bool whole;  // every pixel is valid and the last vector is full
  float pixels, outside;  // how many are valid, and of them have a class number that does not exist
  // [block] each
  std::int32_t* index;
  float *valid, *top, *other, *own, *drop, *inverse, *cost, *extra;
  float *exponentials, *soft, *buffer;  // [C, block]; soft only where targets are
  float* slopes[3];                     // [C + 2] each: by class number + 2, 0 for none

  SoftmaxBlock(const SoftmaxProblem& problem, std::int64_t size, float* scratch) : block(size) {
    const auto take = [&scratch](std::int64_t size) { return scratch += size, scratch - size; };
    const std::int64_t C = problem.channels, row = (C + 2 + kLanes - 1) / kLanes * kLanes;
    index = reinterpret_cast<std::int32_t*>(take(block));
    float** const rows[] = {&valid, &top, &other, &own, &drop, &inverse, &cost, &extra};
    for (float** pixels_row : rows) *pixels_row = take(block);
    for (float*& by_class : slopes) by_class = take(row);
    exponentials = take(C * block);
    buffer = take(C * block);
    soft = scratch;
  }

  // Returns whether any pixel is valid. What is not has logits and soft targets of 0 and no class.
  bool fill(const SoftmaxProblem& problem, std::int64_t b, std::int64_t first) {
    const std::int64_t left = problem.pixels - first;
    count = left < block ? left : block;
    padded = (count + kLanes - 1) / kLanes * kLanes;
    const Planes& mask = problem.mask;
    const std::int64_t masked = b * mask.batch + first * mask.pixel;
    if (mask.data != nullptr && mask.pixel == 0 && static_cast<const std::uint8_t*>(mask.data)[masked] == 0)
      return false;
    if (mask.data != nullptr && mask.pixel != 0)
      load(Element::uint8, mask.data, masked, mask.pixel, count, valid);
    else
      FASTMTL_EACH_LANE(i, padded) valid[i] = 1.0f;
    for (std::int64_t i = count; i < padded; ++i) valid[i] = 0.0f;
    if (!problem.soft)
      load_classes(problem, b * problem.target.batch + first * problem.target.pixel, problem.target.pixel, count,
                   index);
    for (std::int64_t i = count; i < padded; ++i) index[i] = kNoClass;
    count_pixels(problem.soft);
    whole = pixels == static_cast<float>(padded);
    if (pixels == 0.0f) return false;
    read_planes(problem, b, first);
    return true;
  }

 private:
  // Makes what is valid 1, and of the rest the class none.
  void count_pixels(bool soft) {
    float* __restrict here = valid;
    std::int32_t* __restrict classes = index;
    if (soft) FASTMTL_EACH_LANE(i, padded) classes[i] = kNoClass;
    const std::int32_t none = soft ? kNoClass - 1 : kNoClass;
    FASTMTL_EACH_LANE(i, padded) {
      const float before = here[i];
      const std::int32_t read = classes[i], y = before != 0.0f ? read : none;
      here[i] = y == none ? 0.0f : 1.0f;
      classes[i] = y;
    }
    float number = 0.0f, strange = 0.0f;  // not members, which `here` could point to
    FASTMTL_EACH_LANE(i, padded) number += here[i];
    FASTMTL_EACH_LANE(i, padded) strange += classes[i] == kOutsideClass ? 1.0f : 0.0f;
    pixels = number, outside = strange;
  }

  void read_planes(const SoftmaxProblem& problem, std::int64_t b, std::int64_t first) {
    const Planes& from = problem.logits;
    const std::int64_t start = b * from.batch + first * from.pixel;
    const bool direct = from.type == Element::float32 && from.pixel == 1 && whole;
    logits = direct ? static_cast<const float*>(from.data) + start : buffer;
    logits_stride = direct ? from.channel : block;
    for (std::int64_t c = 0; c < problem.channels; ++c) {
      if (!direct) read(from, start + c * from.channel, buffer + c * block);
      const Planes& target = problem.target;
      if (problem.soft)
        read(target, b * target.batch + c * target.channel + first * target.pixel, soft + c * block);
    }
  }

  void read(const Planes& planes, std::int64_t first, float* __restrict out) const {
    load(planes.type, planes.data, first, planes.pixel, count, out);
    if (whole) return;
    for (std::int64_t i = count; i < padded; ++i) out[i] = 0.0f;
    const float* __restrict here = valid;
    FASTMTL_EACH_LANE(i, padded) out[i] = here[i] != 0.0f ? out[i] : 0.0f;
  }
};

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
