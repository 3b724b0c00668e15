#include "losses/softmax.hpp"

#include <algorithm>

namespace fastmtl {
namespace {

constexpr std::int64_t kBlockElements = 4096;  // over all channels; a row of 16 KiB leaves room in L1
constexpr std::int64_t kSmallestBlock = 128;   // below, reducing the lanes to sums costs more than leaving L1
constexpr std::int64_t kChunkElements = 32768;
constexpr std::int64_t kSmallPlane = 32;
constexpr std::int64_t kManyClasses = 64;

std::int64_t whole_vectors(std::int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

}  // namespace

SoftmaxChunks softmax_chunks(const SoftmaxProblem& problem) {
  const std::int64_t C = problem.channels, fitting = kBlockElements / C / kLanes * kLanes;
  const std::int64_t block = std::min(std::clamp(fitting, kSmallestBlock, kBlock), whole_vectors(problem.pixels));
  const std::int64_t size = std::max<std::int64_t>(kChunkElements / (C * block), 1) * block;
  return {block, size, (problem.pixels + size - 1) / size, false, false};
}

SoftmaxChunks small_softmax_chunks(const SoftmaxProblem& problem) {
  // Contiguous classes need no copy; others are still better than lanes that have neither pixels nor samples.
  const bool lanes = problem.batch >= kLanes || problem.pixels >= kSmallPlane;
  const bool rows = problem.channels >= kManyClasses && (problem.logits.channel == 1 || !lanes);
  SoftmaxChunks chunks = softmax_chunks(problem);
  if (problem.pixels < kSmallPlane && problem.pixels < problem.batch) {
    const std::int64_t fitting = kBlockElements / problem.channels / kLanes * kLanes;
    const std::int64_t block = std::min(std::clamp(fitting, kLanes, kBlock), whole_vectors(problem.batch));
    // Where lanes run over classes, few samples are a unit's work: eight of 30,000 classes are shared by the threads.
    const std::int64_t group = rows ? std::clamp(kBlockElements / problem.channels, std::int64_t{1}, block) : block;
    chunks = {block, group, (problem.batch + group - 1) / group, true, false};
  }
  chunks.rows = rows;
  return chunks;
}

SoftmaxChunks small_planes_chunks(const SoftmaxProblem& problem) {
  SoftmaxChunks chunks = small_softmax_chunks(problem);
  if (problem.pixels >= kSmallPlane || !(chunks.rows || chunks.across)) return {};
  if (chunks.rows) return {whole_vectors(problem.pixels), problem.pixels, 1, false, true};
  // Sums are kept for every class: a quarter of the samples, so that they stay in L1.
  const std::int64_t block = std::max(chunks.block / 4 / kLanes * kLanes, std::int64_t{kLanes});
  return {block, block, (problem.batch + block - 1) / block, true, false};
}

SoftmaxScratch::SoftmaxScratch(std::int64_t channels, const SoftmaxChunks& chunks, std::int64_t planes,
                               std::int64_t tables, int threads)
    : size_((9 + planes * channels) * chunks.block + tables * whole_vectors(channels + 2)),
      memory_(new float[static_cast<std::size_t>(threads * size_ + kLanes)]) {}  // not zeroed

float* SoftmaxScratch::begin() {
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
  return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

}  // namespace fastmtl
