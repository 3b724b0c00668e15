// Each product is taken in float64: exact for float32 rows, so near-opposed gradients keep their difference, and
// free, since the pass waits for memory up to about 16 tasks.
#include "gradients/gram.hpp"

#include <cstdlib>
#include <cstring>

#include "core/rows.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// A sum is kept as 8 lanes on every instruction set, so the order it is added in, and with it every bit of the
// result, does not depend on the processor. Where a register holds fewer lanes, the lanes are done in turns.
constexpr std::int64_t kLanes = 8;
#if defined(__AVX512F__)
constexpr std::int64_t kWidth = 8;
constexpr int kTile = 4;  // 4 x 4 sums fill half of 32 registers
#elif defined(__AVX__)
constexpr std::int64_t kWidth = 4;
constexpr int kTile = 3;
#else
constexpr std::int64_t kWidth = 2;
constexpr int kTile = 3;
#endif
using Vector = double __attribute__((vector_size(kWidth * sizeof(double)), may_alias));

constexpr std::int64_t kMaxSplits = 128;  // enough for 128 threads; fixed, so the order of the sums is too
constexpr std::int64_t kMinSplit = 8192;  // columns; less does not pay for a thread
constexpr std::int64_t kBuffered = 8192;  // doubles of all rows in flight: 64 KiB, a part of any L2
constexpr std::int64_t kMinChunk = 128;   // columns

// Every address here is a multiple of the vector's size.
inline Vector& at(double* p) { return *reinterpret_cast<Vector*>(p); }
inline const Vector& at(const double* p) { return *reinterpret_cast<const Vector*>(p); }

// Row i of the next chunk starts at `first + i * row` bytes. Fetching it while this one is multiplied lets the
// products of many tasks and the memory run at once; with few tasks there is nothing to hide, and `first` is null.
struct Ahead {
  const char* first;
  std::int64_t row;
  std::int64_t element;
};

// sums[i][j] += x_i * y_j over n columns, lane by lane; on the diagonal x is y and only j <= i is taken.
template <int A, int B, bool kDiagonal>
void add_tile(const double* x, const double* y, std::int64_t pitch, std::int64_t n, double* sums, std::int64_t K,
              Ahead ahead = {}) {
  for (std::int64_t lane = 0; lane < kLanes; lane += kWidth) {
    Vector sum[A][B];
    for (int i = 0; i < A; ++i)
      for (int j = 0; j < B; ++j) sum[i][j] = at(sums + (i * K + j) * kLanes + lane);
    for (std::int64_t p = lane; p < n; p += kLanes) {
      if (kDiagonal && ahead.first != nullptr)
        for (int i = 0; i < A; ++i) __builtin_prefetch(ahead.first + i * ahead.row + p * ahead.element);
      Vector b[B];
      for (int j = 0; j < B; ++j) b[j] = at(y + j * pitch + p);
      for (int i = 0; i < A; ++i) {
        const Vector a = kDiagonal ? b[i] : at(x + i * pitch + p);
        for (int j = 0; j < (kDiagonal ? i + 1 : B); ++j) sum[i][j] += a * b[j];
      }
    }
    for (int i = 0; i < A; ++i)
      for (int j = 0; j < B; ++j) at(sums + (i * K + j) * kLanes + lane) = sum[i][j];
  }
}

// Adds rows first..first+A of a buffered chunk [K, pitch] to the lane sums [K, K]: the lower triangle, in tiles that
// fit the registers.
template <int A>
void add_tile_row(const double* rows, std::int64_t pitch, std::int64_t n, double* sums, std::int64_t K,
                  std::int64_t first, bool norms_only, Ahead ahead) {
  const double* x = rows + first * pitch;
  double* out = sums + first * K * kLanes;
  if (norms_only) {
    for (int i = 0; i < A; ++i)
      add_tile<1, 1, true>(x + i * pitch, x + i * pitch, pitch, n, out + (i * K + first + i) * kLanes, K);
    return;
  }
  for (std::int64_t column = 0; column < first; column += kTile)
    add_tile<A, kTile, false>(x, rows + column * pitch, pitch, n, out + column * kLanes, K);
  if (ahead.first != nullptr) ahead.first += first * ahead.row;
  add_tile<A, A, true>(x, x, pitch, n, out + first * kLanes, K, ahead);
}

void add_chunk(const double* rows, std::int64_t pitch, std::int64_t n, double* sums, std::int64_t K, bool norms_only,
               Ahead ahead) {
  for (std::int64_t first = 0; first < K; first += kTile) {
    switch (K - first) {
      case 1: add_tile_row<1>(rows, pitch, n, sums, K, first, norms_only, ahead); break;
      case 2: add_tile_row<2>(rows, pitch, n, sums, K, first, norms_only, ahead); break;
      case 3: add_tile_row<3>(rows, pitch, n, sums, K, first, norms_only, ahead); break;
      default: add_tile_row<kTile>(rows, pitch, n, sums, K, first, norms_only, ahead);
    }
  }
}

// One split: columns [begin, end) of every row, as lane sums; then the lanes, added in order, as partial [K, K].
template <typename T>
void add_split(const T* J, std::int64_t K, std::int64_t row_stride, std::int64_t begin, std::int64_t end,
               std::int64_t pitch, bool norms_only, double* rows, double* sums, double* partial) {
  std::memset(sums, 0, static_cast<std::size_t>(K * K * kLanes) * sizeof(double));
  for (std::int64_t p = begin; p < end; p += pitch) {
    const std::int64_t n = end - p < pitch ? end - p : pitch;
    const std::int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
    for (std::int64_t k = 0; k < K; ++k) {
      const T* source = J + k * row_stride + p;
      double* row = rows + k * pitch;
      for (std::int64_t c = 0; c < n; ++c) row[c] = widen(source[c]);
      for (std::int64_t c = n; c < padded; ++c) row[c] = 0.0;
    }
    Ahead ahead = {};
    if (K > kTile && p + pitch < end)
      ahead = {reinterpret_cast<const char*>(J + p + pitch), row_stride * std::int64_t{sizeof(T)}, sizeof(T)};
    add_chunk(rows, pitch, padded, sums, K, norms_only, ahead);
  }
  for (std::int64_t i = 0; i < K; ++i)
    for (std::int64_t pair = i * K; pair <= i * K + i; ++pair) {
      volatile double sum = 0.0;  // or -fassociative-math adds the lanes as each instruction set likes best
      for (std::int64_t lane = 0; lane < kLanes; ++lane) sum = sum + sums[pair * kLanes + lane];
      partial[pair] = sum;
    }
}

}  // namespace

bool gram(const void* J, Element type, std::int64_t K, std::int64_t P, std::int64_t row_stride, bool norms_only,
          double* G, int num_threads) {
  std::int64_t pitch = kBuffered / K / kLanes * kLanes;
  if (pitch < kMinChunk) pitch = kMinChunk;
  std::int64_t splits = (P + kMinSplit - 1) / kMinSplit;
  if (splits > kMaxSplits) splits = kMaxSplits;
  const std::int64_t per_split = ((P + splits - 1) / splits + kLanes - 1) / kLanes * kLanes;
  const std::int64_t threads = num_threads < splits ? num_threads : splits;

  // Allocated here and not inside the region, where running out could only end the process.
  const std::int64_t per_thread = K * pitch + K * K * kLanes;  // a multiple of 64 bytes
  const std::int64_t doubles = threads * per_thread + splits * K * K;
  double* scratch = static_cast<double*>(std::aligned_alloc(64, (doubles * sizeof(double) + 63) / 64 * 64));
  if (scratch == nullptr) return false;
  double* partials = scratch + threads * per_thread;

  with_row_type(type, [&](auto* kind) {
    const auto* rows = static_cast<decltype(kind)>(J);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (std::int64_t thread = 0; thread < threads; ++thread) {
      double* buffer = scratch + thread * per_thread;
      double* sums = buffer + K * pitch;
      for (std::int64_t split = splits * thread / threads; split < splits * (thread + 1) / threads; ++split) {
        const std::int64_t begin = split * per_split;
        const std::int64_t end = begin + per_split < P ? begin + per_split : P;
        add_split(rows, K, row_stride, begin, end, pitch, norms_only, buffer, sums, partials + split * K * K);
      }
    }
  });

  for (std::int64_t i = 0; i < K; ++i)
    for (std::int64_t j = norms_only ? i : 0; j <= i; ++j) {
      double sum = 0.0;
      for (std::int64_t split = 0; split < splits; ++split) sum += partials[split * K * K + i * K + j];
      if (norms_only) {
        G[i] = sum;
      } else {
        G[i * K + j] = G[j * K + i] = sum;
      }
    }
  std::free(scratch);
  return true;
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
