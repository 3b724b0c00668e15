// fused_step on NVIDIA GPUs. The table of tensors travels in the kernel's own parameters: no copy to the device,
// nothing to keep alive, and a captured graph holds it. A block works on one chunk of one tensor. Nothing waits for the
// device.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "gradients/fused_step_cuda.hpp"

namespace fastmtl {
namespace {

#if CUDART_VERSION >= 12010
constexpr int kMaxSegments = 384, kMaxGroups = 32;  // under the 32,764 bytes of parameters a kernel may have
#else
constexpr int kMaxSegments = 44, kMaxGroups = 8;  // 4 KiB
#endif
constexpr int kThreads = 256;
constexpr int kMaxTasks = 64;
constexpr std::int64_t kChunk = 16 * 1024;  // elements; fastmtl/ops/gradients/fused_step.py relies on it

struct Table {
  int n;
  int first_group;
  int first_chunk[kMaxSegments + 1];  // of each segment
  Segment segments[kMaxSegments];
  Group groups[kMaxGroups];
  const float* rates[kMaxGroups];  // a learning rate on the device; null: the group's own
};

template <typename T>
__device__ __forceinline__ T* at(std::int64_t address) {
  return reinterpret_cast<T*>(address);
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

// Everything is read once and written once, so it asks for no place in the L2 cache.
template <typename T, int N>
__device__ __forceinline__ Pack<T, N> load(const T* from) {
  constexpr int kBytes = sizeof(T) * N;
  Pack<T, N> pack;
  if constexpr (kBytes == 16) {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
    memcpy(&pack, &bits, 16);
  } else if constexpr (kBytes == 8 && N > 1) {
    const uint2 bits = __ldcs(reinterpret_cast<const uint2*>(from));
    memcpy(&pack, &bits, 8);
  } else {
    pack = *reinterpret_cast<const Pack<T, N>*>(from);
  }
  return pack;
}

template <typename T, int N>
__device__ __forceinline__ void store(T* to, const Pack<T, N>& pack) {
  if constexpr (sizeof(T) * N == 16) {
    uint4 bits;
    memcpy(&bits, &pack, 16);
    __stcs(reinterpret_cast<uint4*>(to), bits);
  } else {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
  }
}

enum class Kind { adamw, adam, nesterov, momentum, descend };

// What a thread needs of the step; w is in shared memory.
template <typename Real, typename T>
struct Source {
  const T* J;  // at the segment's first column; null: `gradient`
  const Real* gradient;
  std::int64_t row_stride;
  int K;
  const Real* w;
  Real factor;
};

template <Kind kKind, int N, typename Real, typename T>
__device__ __forceinline__ void move(const Coefficients<Real>& c, const Source<Real, T>& source, Real* p, Real* m,
                                     Real* v, std::int64_t i) {
  constexpr bool kFirst = kKind != Kind::descend, kSecond = kKind == Kind::adamw || kKind == Kind::adam;
  Pack<Real, N> parameter = load<Real, N>(p + i), first = {}, second = {}, gradient = {};
  if (kFirst) first = load<Real, N>(m + i);
  if (kSecond) second = load<Real, N>(v + i);
  if (source.J == nullptr) {
    gradient = load<Real, N>(source.gradient + i);
  } else {
#pragma unroll 4
    for (int k = 0; k < source.K; ++k) {
      const Pack<T, N> row = load<T, N>(source.J + k * source.row_stride + i);
#pragma unroll
      for (int e = 0; e < N; ++e) gradient.values[e] += source.w[k] * widen(row.values[e]);
    }
  }
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const Real g = source.factor * gradient.values[e];
    if constexpr (kSecond) {
      adam<kKind == Kind::adamw>(c, g, parameter.values[e], first.values[e], second.values[e]);
    } else if constexpr (kFirst) {
      momentum<kKind == Kind::nesterov>(c, g, parameter.values[e], first.values[e]);
    } else {
      descend(c, g, parameter.values[e]);
    }
  }
  store<Real, N>(p + i, parameter);
  if (kFirst) store<Real, N>(m + i, first);
  if (kSecond) store<Real, N>(v + i, second);
}

template <Kind kKind, typename Real, typename T>
__device__ __forceinline__ void move_chunk(const Segment& segment, const Coefficients<Real>& c,
                                           const Source<Real, T>& source, std::int64_t begin, std::int64_t end) {
  constexpr int N = 16 / sizeof(Real);
  Real *p = at<Real>(segment.parameter), *m = at<Real>(segment.first), *v = at<Real>(segment.second);
  const std::int64_t odd = (segment.parameter | segment.first | segment.second | segment.gradient) % 16;
  const bool rows_aligned = source.J == nullptr || (reinterpret_cast<std::uintptr_t>(source.J) % (sizeof(T) * N) == 0 &&
                                                    source.row_stride % N == 0);
  std::int64_t i = begin;
  if (odd == 0 && rows_aligned) {
    for (i += std::int64_t{threadIdx.x} * N; i + N <= end; i += kThreads * N) move<kKind, N>(c, source, p, m, v, i);
    i = begin + (end - begin) / N * N;
  }
  for (i += threadIdx.x; i < end; i += kThreads) move<kKind, 1>(c, source, p, m, v, i);
}

// The segment a block works on.
__device__ __forceinline__ int find(const Table& table) {
  int low = 0, high = table.n - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_chunk[middle] <= static_cast<int>(blockIdx.x))
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

template <typename Real, typename T>
__global__ void __launch_bounds__(kThreads)
    update(const __grid_constant__ Table table, const T* J, int K, std::int64_t row_stride, const Real* weights,
           const double* factor, const float* skip) {
  if (*skip != 0.0f) return;
  __shared__ Real w[kMaxTasks];
  __shared__ Coefficients<Real> c;
  const int found = find(table);
  const Segment& segment = table.segments[found];
  const Group& group = table.groups[segment.group - table.first_group];
  if (threadIdx.x < K) w[threadIdx.x] = weights[threadIdx.x];
  if (threadIdx.x == 0) {
    const float* rate = table.rates[segment.group - table.first_group];
    const double count = segment.step == 0 ? 2.0 : static_cast<double>(*at<const float>(segment.step)) + 1.0;
    c = coefficients<Real>(group, rate == nullptr ? group.lr : static_cast<double>(*rate), count);
  }
  __syncthreads();
  const std::int64_t begin = (blockIdx.x - table.first_chunk[found]) * kChunk;
  const std::int64_t end = begin + kChunk < segment.count ? begin + kChunk : segment.count;
  const Real* gradient = at<const Real>(segment.gradient);
  const Source<Real, T> source = {
      gradient == nullptr ? J + segment.column : nullptr, gradient, row_stride, K, w, static_cast<Real>(*factor)};
  const Rule rule = static_cast<Rule>(static_cast<int>(group.rule));
  if (rule == Rule::adamw)
    move_chunk<Kind::adamw>(segment, c, source, begin, end);
  else if (rule == Rule::adam)
    move_chunk<Kind::adam>(segment, c, source, begin, end);
  else if (segment.first == 0)
    move_chunk<Kind::descend>(segment, c, source, begin, end);
  else if (group.nesterov != 0.0)
    move_chunk<Kind::nesterov>(segment, c, source, begin, end);
  else
    move_chunk<Kind::momentum>(segment, c, source, begin, end);
}

// After the update: its blocks read the old counts.
__global__ void advance(const __grid_constant__ Table table, const float* skip) {
  if (*skip != 0.0f) return;
  for (int s = threadIdx.x; s < table.n; s += blockDim.x)
    if (table.segments[s].step != 0) *at<float>(table.segments[s].step) += 1.0f;
}

// The block's sum, in thread 0; added in a fixed order.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double warps[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  if (threadIdx.x == 0)
    for (const double warp : warps) sum += warp;
  return sum;
}

template <typename Real>
__global__ void __launch_bounds__(kThreads) squares(const __grid_constant__ Table table, double* partials) {
  constexpr int N = 16 / sizeof(Real);
  const int found = find(table);
  const Segment& segment = table.segments[found];
  const std::int64_t begin = (blockIdx.x - table.first_chunk[found]) * kChunk;
  const std::int64_t end = begin + kChunk < segment.count ? begin + kChunk : segment.count;
  const Real* g = at<const Real>(segment.gradient);
  double sum = 0.0;
  std::int64_t i = begin;
  if (segment.gradient % 16 == 0) {
#pragma unroll 4
    for (i += std::int64_t{threadIdx.x} * N; i + N <= end; i += kThreads * N) {
      const Pack<Real, N> pack = *reinterpret_cast<const Pack<Real, N>*>(g + i);  // the update reads it again
#pragma unroll
      for (int e = 0; e < N; ++e) sum += static_cast<double>(pack.values[e]) * static_cast<double>(pack.values[e]);
    }
    i = begin + (end - begin) / N * N;
  }
  for (i += threadIdx.x; i < end; i += kThreads) sum += static_cast<double>(g[i]) * static_cast<double>(g[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) add_up(const double* partials, std::int64_t n, double* total) {
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < n; i += kThreads) sum += partials[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *total = sum;
}

// The next segments that fit one launch, from `*next` on, which moves past them; their number of chunks.
int fill(Table& table, const Segment* segments, std::int64_t n, const Group* groups, const float* const* rates,
         std::int64_t* next) {
  table.n = 0;
  table.first_group = static_cast<int>(segments[*next].group);
  int chunks = 0;
  for (; *next < n && table.n < kMaxSegments; ++*next) {
    const Segment& segment = segments[*next];
    const std::int64_t group = segment.group - table.first_group;
    if (groups != nullptr && group >= kMaxGroups) break;
    if (groups != nullptr) {
      table.groups[group] = groups[segment.group];
      table.rates[group] = rates[segment.group];
    }
    table.segments[table.n] = segment;
    table.first_chunk[table.n++] = chunks;
    chunks += static_cast<int>((segment.count + kChunk - 1) / kChunk);
  }
  table.first_chunk[table.n] = chunks;
  return chunks;
}

template <typename Real, typename T>
void launch(const Table& table, int chunks, const Step& step, const double* factor, const float* skip,
            cudaStream_t stream) {
  update<Real, T><<<chunks, kThreads, 0, stream>>>(table, static_cast<const T*>(step.J), static_cast<int>(step.K),
                                                   step.row_stride, static_cast<const Real*>(step.w), factor, skip);
}

}  // namespace

const char* cuda_message(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int sum_of_squares_cuda(const Segment* segments, std::int64_t n, bool wide, double* partials, double* sum,
                        void* stream_address) {
  const auto stream = static_cast<cudaStream_t>(stream_address);
  std::int64_t written = 0;
  for (std::int64_t next = 0; next < n;) {
    Table table = {};
    const int chunks = fill(table, segments, n, nullptr, nullptr, &next);
    if (wide)
      squares<double><<<chunks, kThreads, 0, stream>>>(table, partials + written);
    else
      squares<float><<<chunks, kThreads, 0, stream>>>(table, partials + written);
    written += chunks;
  }
  add_up<<<1, kThreads, 0, stream>>>(partials, written, sum);
  return static_cast<int>(cudaGetLastError());
}

int fused_step_cuda(const Step& step, const float* const* rates, const double* factor, const float* skip,
                    void* stream_address) {
  const auto stream = static_cast<cudaStream_t>(stream_address);
  for (std::int64_t next = 0; next < step.n;) {
    Table table = {};
    const int chunks = fill(table, step.segments, step.n, step.groups, rates, &next);
    if (step.wide)
      launch<double, double>(table, chunks, step, factor, skip, stream);
    else if (step.row_type == Element::float16)
      launch<float, __half>(table, chunks, step, factor, skip, stream);
    else if (step.row_type == Element::bfloat16)
      launch<float, __nv_bfloat16>(table, chunks, step, factor, skip, stream);
    else
      launch<float, float>(table, chunks, step, factor, skip, stream);
    advance<<<1, kThreads, 0, stream>>>(table, skip);
  }
  return static_cast<int>(cudaGetLastError());
}

}  // namespace fastmtl
