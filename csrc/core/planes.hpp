// Tensors [batch, channels, pixels] as the fused losses read them, and how their pixels are shared out to threads.
#pragma once

#include <cstdint>

#include "core/element.hpp"
#include "core/isa.hpp"

namespace fastmtl {

// How far a target is from 1/2, as the bits of that number: they are ordered as the numbers are, so that one integer
// maximum covers both ends. Targets of 0 to 1 are at most 1/2 away.
using Distance = std::int32_t;

// Whether targets no farther away than this are within 0 to 1, up to rounding. A NaN, the farthest of all, passes: it
// makes the loss NaN.
bool plausible(Distance farthest);

// Strides count elements. data == nullptr: the tensor is absent.
struct Planes {
  void* data;
  Element type;
  std::int64_t batch, channel, pixel;
};

struct LossInputs {
  std::int64_t batch, channels, pixels;
  Planes logits;  // float32, float16 or bfloat16
  Planes target;  // any type
  Planes mask;    // uint8 or bool, 0 = takes part in nothing; absent: every element counts
};

constexpr std::int64_t kBlock = 512;  // elements that a kernel works on at a time, in L1; at most 32 additions a lane

// Pixels are summed in chunks whose size depends on the shape alone, so that no sum depends on the thread count.
struct Chunks {
  std::int64_t pixels, count;  // per sample
};
Chunks chunks_of(const LossInputs& inputs);

// Whether planes have so few pixels that vector lanes run over planes instead: a block is then one pixel of a group of
// planes, and the group stays in L1 from its first pixel to its last.
bool small_planes(const LossInputs& inputs);
std::int64_t group_planes(const LossInputs& inputs);
std::int64_t groups_of(const LossInputs& inputs);

// At most `threads`, and no more than have a chunk to work on.
int useful_threads(std::int64_t elements, int threads);
int useful_threads(const LossInputs& inputs, int threads);

// Call it before writing all of `gradient` (shaped as the logits): it asks the system for huge pages.
void expect_whole_write(std::int64_t elements, const Planes& gradient);
void expect_whole_write(const LossInputs& inputs, const Planes& gradient);

}  // namespace fastmtl
