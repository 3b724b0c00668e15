// Runs of a full-resolution mask as a head sees them: sampled, averaged or maximised over windows, on the fly.
//
// A window's rows are first added up (or maximised) element by element, in vectors, and only then across: for a window
// of s x s that leaves one strided step in s. Included by *_cpu.cpp alone.
#pragma once

#include "core/block_io.hpp"
#include "losses/deep_supervision.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kWide = 1024;  // mask pixels at a time; the four buffers take 16 KiB

inline std::int64_t offset_of(const Volume& volume, const std::int64_t scale[3], std::int64_t b, std::int64_t c,
                              const std::int64_t at[3]) {
  std::int64_t offset = b * volume.batch + c * volume.channel;
  for (int axis = 0; axis < 3; ++axis) offset += at[axis] * scale[axis] * volume.pixel[axis];
  return offset;
}

// Of numbers >= 0, whose bits are ordered as they are: one integer maximum, in which a NaN wins as in torch.
inline float larger(float a, float b) {
  const std::int32_t first = bits_of<std::int32_t>(a) & 0x7fffffff, second = bits_of<std::int32_t>(b) & 0x7fffffff;
  return bits_of<float>(second > first ? second : first);
}

template <bool kMax>
inline float merge(float a, float b) {
  return kMax ? larger(a, b) : a + b;
}

// values [count * span] to [count]: the sum or maximum of each span.
template <bool kMax>
void merge_spans(float* values, std::int64_t count, std::int64_t span) {
  for (; span % 2 == 0; span /= 2)
    for (std::int64_t i = 0; i < count * span / 2; ++i) values[i] = merge<kMax>(values[2 * i], values[2 * i + 1]);
  if (span == 1) return;
  for (std::int64_t i = 0; i < count; ++i) {
    float merged = values[i * span];
    for (std::int64_t k = 1; k < span; ++k) merged = merge<kMax>(merged, values[i * span + k]);
    values[i] = merged;
  }
}

struct Windows {
  alignas(64) float row[kWide], rows[kWide], row_valid[kWide], rows_valid[kWide];

  // `count` windows from `at` along the last axis into target and, where masked, their valid pixels' number into valid.
  template <bool kMax>
  void reduce(const DeepSupervision& problem, const DeepHead& head, bool masked, std::int64_t b, std::int64_t c,
              const std::int64_t at[3], std::int64_t count, float* target, float* valid) {
    const std::int64_t* scale = head.scale;
    const std::int64_t across = scale[2], step = across < kWide ? kWide / across : 1;
    for (std::int64_t done = 0; done < count; done += step) {
      const std::int64_t some = count - done < step ? count - done : step;
      for (std::int64_t i = done; i < done + some; ++i) target[i] = valid[i] = 0.0f;
      const std::int64_t corner[3] = {at[0], at[1], at[2] + done};
      const std::int64_t target_start = offset_of(problem.target, scale, b, c, corner);
      const std::int64_t mask_start = masked ? offset_of(problem.mask, scale, b, c, corner) : 0;
      for (std::int64_t left = 0; left < across; left += kWide) {  // once, unless a window is wider than the buffers
        const std::int64_t rest = some * across - left, width = rest < kWide ? rest : kWide;
        add_rows<kMax>(problem, scale, masked, target_start, mask_start, left, width);
        merge_spans<kMax>(rows, some, width / some);
        if (masked) merge_spans<false>(rows_valid, some, width / some);
        for (std::int64_t i = 0; i < some; ++i) {
          target[done + i] = merge<kMax>(target[done + i], rows[i]);
          valid[done + i] += masked ? rows_valid[i] : 0.0f;
        }
      }
    }
    if (kMax) return;
    const float window = static_cast<float>(scale[0] * scale[1] * scale[2]);
    for (std::int64_t i = 0; i < count; ++i) {
      const float number = masked ? valid[i] : window;
      // A quotient may be rounded to less than 1, and then an infinite logit on the right side would not cost 0.
      target[i] = target[i] == number ? (number == 0.0f ? 0.0f : 1.0f) : target[i] / number;
    }
  }

 private:
  template <bool kMax>
  void add_rows(const DeepSupervision& problem, const std::int64_t scale[3], bool masked, std::int64_t target_start,
                std::int64_t mask_start, std::int64_t left, std::int64_t width) {
    const Volume &target = problem.target, &mask = problem.mask;
    for (std::int64_t i = 0; i < width; ++i) rows[i] = rows_valid[i] = 0.0f;
    for (std::int64_t z = 0; z < scale[0]; ++z)
      for (std::int64_t y = 0; y < scale[1]; ++y) {
        const auto place = [&](const Volume& volume) {
          return z * volume.pixel[0] + y * volume.pixel[1] + left * volume.pixel[2];
        };
        load(target.type, target.data, target_start + place(target), target.pixel[2], width, row);
        if (masked) {
          load(Element::uint8, mask.data, mask_start + place(mask), mask.pixel[2], width, row_valid);
          for (std::int64_t i = 0; i < width; ++i) {
            const bool counts = row_valid[i] != 0.0f;
            rows[i] = merge<kMax>(rows[i], counts ? row[i] : 0.0f);
            rows_valid[i] += counts ? 1.0f : 0.0f;
          }
        } else {
          for (std::int64_t i = 0; i < width; ++i) rows[i] = merge<kMax>(rows[i], row[i]);
        }
      }
  }
};

}  // namespace
}  // namespace FASTMTL_ISA
}  // namespace fastmtl
