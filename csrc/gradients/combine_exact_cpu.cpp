#include "gradients/combine.hpp"

#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "gradients/weighted_sum.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

constexpr std::int64_t kBlock = 64;                // columns whose sums stay in registers
constexpr std::int64_t kMinPerThread = 32 * 1024;  // columns
constexpr std::int64_t kStreamedBytes = 16 << 20;  // an output this large is not in the cache when read next

// Writes 64 bytes past the caches: an ordinary store would first read the line it overwrites.
inline void stream(const void* from, void* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(__AVX__)
  const auto* source = static_cast<const __m256i*>(from);
  for (int i = 0; i < 2; ++i) _mm256_stream_si256(static_cast<__m256i*>(to) + i, _mm256_loadu_si256(source + i));
#elif defined(__SSE2__)
  const auto* source = static_cast<const __m128i*>(from);
  for (int i = 0; i < 4; ++i) _mm_stream_si128(static_cast<__m128i*>(to) + i, _mm_loadu_si128(source + i));
#else
  std::memcpy(to, from, 64);
#endif
}

template <typename T, typename Sum>
void combine_columns(const T* J, std::int64_t K, std::int64_t row_stride, const Sum* w, Sum* out, std::int64_t begin,
                     std::int64_t end, bool streamed) {
  std::int64_t p = begin;
  for (; p + kBlock <= end; p += kBlock) {
    Sum sum[kBlock];
    weighted_sum(J + p, K, row_stride, w, sum, kBlock);
    if (streamed) {
      for (std::int64_t c = 0; c < kBlock; c += 64 / sizeof(Sum)) stream(sum + c, out + p + c);
    } else {
      std::memcpy(out + p, sum, sizeof sum);
    }
  }
  weighted_sum(J + p, K, row_stride, w, out + p, end - p);
#if defined(__SSE2__)
  if (streamed) _mm_sfence();
#endif
}

template <typename T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

template <typename T>
void combine_rows(const T* J, std::int64_t K, std::int64_t P, std::int64_t row_stride, const void* weights,
                  void* result, int num_threads) {
  using Sum = typename SumOf<T>::type;
  const Sum* w = static_cast<const Sum*>(weights);
  Sum* out = static_cast<Sum*>(result);
  const bool streamed = P * static_cast<std::int64_t>(sizeof(Sum)) >= kStreamedBytes &&
                        reinterpret_cast<std::uintptr_t>(result) % 64 == 0;
  const std::int64_t blocks = (P + kBlock - 1) / kBlock;
  std::int64_t threads = (P + kMinPerThread - 1) / kMinPerThread;
  if (threads > num_threads) threads = num_threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (std::int64_t thread = 0; thread < threads; ++thread) {
    const std::int64_t begin = blocks * thread / threads * kBlock;
    const std::int64_t end = blocks * (thread + 1) / threads * kBlock;
    combine_columns(J, K, row_stride, w, out, begin, end < P ? end : P, streamed);
  }
}

}  // namespace

void combine(const void* J, Element type, std::int64_t K, std::int64_t P, std::int64_t row_stride, const void* w,
             void* out, int num_threads) {
  with_row_type(
      type, [&](auto* kind) { combine_rows(static_cast<decltype(kind)>(J), K, P, row_stride, w, out, num_threads); });
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
