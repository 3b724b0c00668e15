// What the losses on a softmax over channels share: their inputs, and how they are shared out.
#pragma once

#include <cstdint>
#include <memory>

#include "core/planes.hpp"

namespace fastmtl {

struct SoftmaxProblem : LossInputs {  // the mask is [B, 1, pixels]
  bool soft;                  // whether the target is [B, C, pixels], any type, not class numbers [B, 1, pixels]
  std::int64_t ignore_index;  // pixels of this class number take part in nothing
};

// A block is some pixels with all their channels: pixels of one sample or, where samples are small, one pixel of many
// samples (`across`), so that vector lanes have work. A unit is what one thread takes at a time: blocks of a chunk of
// one sample, or all pixels of a group of samples. Its size depends on the shape alone, and so no sum depends on the
// thread count. Where there are many classes, vector lanes may run over them instead (`rows`).
struct SoftmaxChunks {
  std::int64_t block, pixels,
      count;  // pixels and count of chunks of a sample; across: of samples in a group, of groups
  bool across, rows;

  std::int64_t units(std::int64_t batch) const { return across ? count : batch * count; }
};
SoftmaxChunks softmax_chunks(const SoftmaxProblem& problem);        // along the pixels of each sample
SoftmaxChunks small_softmax_chunks(const SoftmaxProblem& problem);  // across samples or classes where that is better

// Of the samples' few pixels, where a segment is a class of a sample: what is done once a segment is then as much as
// what is done once an element, and lanes run over samples or, sample by sample, over classes. Blocks of {0}: there are
// more pixels, or too little of everything to fill lanes.
SoftmaxChunks small_planes_chunks(const SoftmaxProblem& problem);

// Memory of each thread's blocks, rows of floats aligned to 64 bytes, so that no vector crosses a cache line.
class SoftmaxScratch {
 public:
  // planes: rows [C, block] that a block keeps; tables: rows [C + 2].
  SoftmaxScratch(std::int64_t channels, const SoftmaxChunks& chunks, std::int64_t planes, std::int64_t tables,
                 int threads);
  float* begin();
  std::int64_t size() const { return size_; }  // of one thread

 private:
  std::int64_t size_;
  std::unique_ptr<float[]> memory_;
};

}  // namespace fastmtl
