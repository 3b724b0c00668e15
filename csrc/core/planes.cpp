#include "core/planes.hpp"

#include <algorithm>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastmtl {
namespace {

constexpr std::int64_t kChunkElements = 16384;  // over all channels: 64 KiB of float32

constexpr std::int64_t kSmallPlane = 32;  // more fill two vectors and are worth a block of their own

}  // namespace

bool plausible(Distance farthest) {
  constexpr Distance kAllowed = 0x3f028f5c, kInfinite = 0x7f800000;  // 0.51: interpolation and half precision round
  return farthest <= kAllowed || farthest > kInfinite;
}

Chunks chunks_of(const LossInputs& inputs) {
  const std::int64_t blocks = kChunkElements / std::max<std::int64_t>(inputs.channels, 1) / kBlock;
  const std::int64_t size = std::max<std::int64_t>(blocks, 1) * kBlock;
  return {size, (inputs.pixels + size - 1) / size};
}

bool small_planes(const LossInputs& inputs) {
  return inputs.pixels < kSmallPlane && inputs.pixels < inputs.batch * inputs.channels;
}

std::int64_t group_planes(const LossInputs& inputs) { return inputs.pixels == 1 ? kBlock : kBlock / 4; }

std::int64_t groups_of(const LossInputs& inputs) {
  return (inputs.batch * inputs.channels + group_planes(inputs) - 1) / group_planes(inputs);
}

int useful_threads(std::int64_t elements, int threads) {
  return static_cast<int>(std::clamp<std::int64_t>(elements / kChunkElements, 1, std::max(threads, 1)));
}

int useful_threads(const LossInputs& inputs, int threads) {
  return useful_threads(inputs.batch * inputs.channels * inputs.pixels, threads);
}

// A large gradient is fresh memory, and faulting it in by pages of 4 KiB takes longer than computing it (measured:
// 26 ms against 9 ms with huge pages). Only a hint, and only for whole pages inside the buffer.
void expect_whole_write(std::int64_t elements, const Planes& gradient) {
#if defined(__linux__)
  constexpr std::uintptr_t kPage = 4096, kWorthwhile = std::uintptr_t{4} << 20;
  const std::uintptr_t size = gradient.type == Element::float32 ? 4 : 2;
  const auto begin = reinterpret_cast<std::uintptr_t>(gradient.data);
  const auto end = begin + static_cast<std::uintptr_t>(elements) * size;
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  if (end - begin >= kWorthwhile) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)elements, (void)gradient;
#endif
}

void expect_whole_write(const LossInputs& inputs, const Planes& gradient) {
  expect_whole_write(inputs.batch * inputs.channels * inputs.pixels, gradient);
}

}  // namespace fastmtl
