// One block of pixels across all channels, as the softmax kernels read it: logits as float, class numbers as int32.
// Only *_cpu.cpp files may include it.
#pragma once

#include "core/block_io.hpp"
#include "losses/softmax.hpp"

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

// `count` pixels of one sample from `pixel` on or, `across`, one pixel of as many samples from `sample` on.
struct SoftmaxRun {
  std::int64_t sample, pixel, count;
  bool across;

  std::int64_t start(const Planes& planes) const { return sample * planes.batch + pixel * planes.pixel; }
  std::int64_t stride(const Planes& planes) const { return across ? planes.batch : planes.pixel; }
};

// Calls body(run) for every block of unit number `unit`.
template <typename Body>
inline void for_each_run(const SoftmaxProblem& problem, const SoftmaxChunks& chunks, std::int64_t unit, Body body) {
  const std::int64_t b = unit / chunks.count, begin = unit % chunks.count * chunks.pixels;
  const std::int64_t length = chunks.across ? problem.batch : problem.pixels;
  const std::int64_t end = begin + chunks.pixels < length ? begin + chunks.pixels : length;
  if (chunks.across)
    for (std::int64_t pixel = 0; pixel < problem.pixels; ++pixel) body(SoftmaxRun{begin, pixel, end - begin, true});
  else
    for (std::int64_t first = begin; first < end; first += chunks.block)
      body(SoftmaxRun{b, first, end - first < chunks.block ? end - first : chunks.block, false});
}

struct SoftmaxBlock {
  // Logits of channel c begin at logits + c * logits_stride: in the tensor if a kernel can use it, else in a buffer.
  const float* logits;
  std::int64_t logits_stride;
  std::int64_t block, count, padded;
  bool whole;             // every pixel is valid and the last vector is full
  float pixels, outside;  // how many are valid, and of them have a class number that does not exist
  // [block] each
  std::int32_t* index;
  float *valid, *top, *other, *own, *drop, *inverse, *cost, *extra;
  float *exponentials, *buffer, *soft;  // [C, block], as many as wanted
  float* slopes[3];  // [C + 2] numbers of classes, as many as wanted: by class number + 2, 0 for none

  SoftmaxBlock(std::int64_t channels, std::int64_t size, std::int64_t planes, std::int64_t tables, float* scratch)
      : block(size) {
    const auto take = [&scratch](std::int64_t size) { return scratch += size, scratch - size; };
    const std::int64_t row = (channels + 2 + kLanes - 1) / kLanes * kLanes;
    index = reinterpret_cast<std::int32_t*>(take(block));
    float** const rows[] = {&valid, &top, &other, &own, &drop, &inverse, &cost, &extra};
    for (float** pixels_row : rows) *pixels_row = take(block);
    for (std::int64_t k = 0; k < tables; ++k) slopes[k] = take(row);
    float** const kept[] = {&exponentials, &buffer, &soft};
    for (std::int64_t k = 0; k < planes; ++k) *kept[k] = take(channels * block);
  }

  // Returns whether any pixel is valid. What is not has logits and soft targets of 0 and no class.
  bool fill(const SoftmaxProblem& problem, const SoftmaxRun& run) {
    if (!fill_classes(problem, run)) return false;
    read_planes(problem, run);
    return true;
  }

  // Of that all but the logits.
  bool fill_classes(const SoftmaxProblem& problem, const SoftmaxRun& run) {
    count = run.count;
    padded = (count + kLanes - 1) / kLanes * kLanes;
    const Planes& mask = problem.mask;
    const std::int64_t masked = run.start(mask), step = run.stride(mask);
    if (mask.data != nullptr && step == 0 && static_cast<const std::uint8_t*>(mask.data)[masked] == 0) return false;
    if (mask.data != nullptr && step != 0)
      load(Element::uint8, mask.data, masked, step, count, valid);
    else
      FASTMTL_EACH_LANE(i, padded) valid[i] = 1.0f;
    for (std::int64_t i = count; i < padded; ++i) valid[i] = 0.0f;
    if (!problem.soft) load_classes(problem, run.start(problem.target), run.stride(problem.target), count, index);
    for (std::int64_t i = count; i < padded; ++i) index[i] = kNoClass;
    count_pixels(problem.soft);
    whole = pixels == static_cast<float>(padded);
    return pixels != 0.0f;
  }

  // No pixel is valid.
  void clear() {
    FASTMTL_EACH_LANE(i, padded) valid[i] = 0.0f;
    FASTMTL_EACH_LANE(i, padded) index[i] = kNoClass;
    whole = false;
  }

 private:
  // Makes what is valid 1, and of the rest the class none.
  void count_pixels(bool soft) {
    Floats here = valid;
    std::int32_t* __restrict classes = index;
    if (soft)
      FASTMTL_EACH_LANE(i, padded) classes[i] = kNoClass;
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

  void read_planes(const SoftmaxProblem& problem, const SoftmaxRun& run) {
    const Planes &from = problem.logits, &target = problem.target;
    const std::int64_t start = run.start(from), step = run.stride(from);
    const bool direct = from.type == Element::float32 && step == 1 && whole;
    logits = direct ? static_cast<const float*>(from.data) + start : buffer;
    logits_stride = direct ? from.channel : block;
    for (std::int64_t c = 0; c < problem.channels; ++c) {
      if (!direct) read(from, start + c * from.channel, step, buffer + c * block);
      if (problem.soft) read(target, run.start(target) + c * target.channel, run.stride(target), soft + c * block);
    }
  }

  void read(const Planes& planes, std::int64_t first, std::int64_t step, Floats out) const {
    load(planes.type, planes.data, first, step, count, out);
    if (whole) return;
    for (std::int64_t i = count; i < padded; ++i) out[i] = 0.0f;
    ConstFloats here = valid;
    FASTMTL_EACH_LANE(i, padded) out[i] = here[i] != 0.0f ? out[i] : 0.0f;
  }
};

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
