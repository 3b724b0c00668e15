"""The counting passes of stain normalisation for NVIDIA GPUs: CUDA C++ that CuPy compiles on first use.

Histograms are accumulated in shared memory if they fit; counts are integers, so results do not depend on the order of
atomics. Each block adds its moments in a fixed order; the caller adds the blocks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

ANGLE_BINS, CONCENTRATION_BINS, THREADS = 16384, 8192, 256

SOURCE = r"""
typedef unsigned char byte;
typedef long long i64;

struct Images { const byte* data; i64 pixels, batch, channel, pixel; const byte* inside; };

__device__ inline bool is_inside(const Images& m, i64 b, i64 i) {
  return m.inside == nullptr || m.inside[b * m.pixels + i] != 0;
}

__device__ inline void read(const Images& m, i64 b, i64 i, int* v) {
  const byte* p = m.data + b * m.batch + i * m.pixel;
  v[0] = p[0]; v[1] = p[m.channel]; v[2] = p[2 * m.channel];
}

// See Mask in fastmtl/ops/stain/passes.py.
__device__ inline bool tissue(const Images& m, i64 b, i64 i, const int* v, int kind, int limit, const float* tables,
                              float threshold) {
  bool found = true;
  if (kind == 1) found = max(v[0], max(v[1], v[2])) <= limit;
  if (kind == 2) found = min(v[0], min(v[1], v[2])) <= limit;
  if (kind == 3) {
    const float* t = tables + b * 768;
    found = t[v[0]] + t[256 + v[1]] + t[512 + v[2]] < threshold;
  }
  return found && is_inside(m, b, i);
}

#define IMAGES const byte* data, i64 pixels, i64 batch, i64 channel, i64 pixel, const byte* inside
#define MASK int kind, int limit, const float* tables, float threshold
#define BEGIN                                                          \
  const Images m = {data, pixels, batch, channel, pixel, inside};      \
  const i64 b = blockIdx.y, step = (i64)gridDim.x * blockDim.x;        \
  const i64 start = (i64)blockIdx.x * blockDim.x + threadIdx.x;

// partials [B, gridDim.x, 10]
extern "C" __global__ void stain_moments(IMAGES, MASK, const float* table, double* partials) {
  BEGIN
  double sums[10] = {};
  for (i64 i = start; i < pixels; i += step) {
    int v[3];
    read(m, b, i, v);
    if (!tissue(m, b, i, v, kind, limit, tables, threshold)) continue;
    const float x = table[v[0]], y = table[v[1]], z = table[v[2]];
    sums[0] += 1; sums[1] += x; sums[2] += y; sums[3] += z;
    sums[4] += x * x; sums[5] += x * y; sums[6] += x * z; sums[7] += y * y; sums[8] += y * z; sums[9] += z * z;
  }
  __shared__ double shared[256];
  for (int k = 0; k < 10; ++k) {
    shared[threadIdx.x] = sums[k];
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
      __syncthreads();
    }
    if (threadIdx.x == 0) partials[(b * gridDim.x + blockIdx.x) * 10 + k] = shared[0];
    __syncthreads();
  }
}

// counts [B, ANGLES]: zeros to add to
extern "C" __global__ void stain_angles(IMAGES, MASK, const float* table, const float* basis, float least,
                                        int* counts) {
  BEGIN
  extern __shared__ int bins[];
  for (int k = threadIdx.x; k < ANGLES; k += blockDim.x) bins[k] = 0;
  __syncthreads();
  const float* e = basis + b * 6;
  for (i64 i = start; i < pixels; i += step) {
    int v[3];
    read(m, b, i, v);
    if (!tissue(m, b, i, v, kind, limit, tables, threshold)) continue;
    const float r = table[v[0]], g = table[v[1]], u = table[v[2]];
    const float x = e[0] * r + e[1] * g + e[2] * u, y = e[3] * r + e[4] * g + e[5] * u;
    if (x * x + y * y < least) continue;
    const float along = x / (fabsf(x) + fabsf(y) + 1e-30f), angle = y < 0 ? along - 1 : 1 - along;
    atomicAdd(bins + min((int)((angle + 2) * (ANGLES / 4.0f)), ANGLES - 1), 1);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < ANGLES; k += blockDim.x)
    if (bins[k]) atomicAdd(counts + b * ANGLES + k, bins[k]);
}

// counts [B, 2, AMOUNTS]: zeros to add to; lasso [B, 2] or null
extern "C" __global__ void stain_concentrations(IMAGES, const float* table, const float* matrix, const float* lasso,
                                                const float* scale, int* counts) {
  BEGIN
  extern __shared__ int bins[];
  for (int k = threadIdx.x; k < 2 * AMOUNTS; k += blockDim.x) bins[k] = 0;
  __syncthreads();
  const float* p = matrix + b * 8;
  for (i64 i = start; i < pixels; i += step) {
    if (!is_inside(m, b, i)) continue;
    int v[3];
    read(m, b, i, v);
    const float r = table[v[0]], g = table[v[1]], u = table[v[2]];
    float c0 = p[0] * r + p[1] * g + p[2] * u + p[3], c1 = p[4] * r + p[5] * g + p[6] * u + p[7];
    if (lasso != nullptr) {
      const float product = lasso[2 * b], inverse = lasso[2 * b + 1];
      const float both0 = (c0 - product * c1) * inverse, both1 = (c1 - product * c0) * inverse;
      const float only0 = fmaxf(c0, 0), only1 = fmaxf(c1, 0);
      const bool inner = both0 >= 0 && both1 >= 0, zeroth = only0 >= only1;
      c0 = inner ? both0 : zeroth ? only0 : 0;
      c1 = inner ? both1 : zeroth ? 0 : only1;
    }
    atomicAdd(bins + (int)fminf(fmaxf(c0 * scale[2 * b], 0), AMOUNTS - 1), 1);
    atomicAdd(bins + AMOUNTS + (int)fminf(fmaxf(c1 * scale[2 * b + 1], 0), AMOUNTS - 1), 1);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < 2 * AMOUNTS; k += blockDim.x)
    if (bins[k]) atomicAdd(counts + b * 2 * AMOUNTS + k, bins[k]);
}

// counts [2^21, 8]: zeros to add to; pixels and the sums of their last bits, then those of tissue
extern "C" __global__ void stain_colours(IMAGES, MASK, unsigned int* counts) {
  BEGIN
  for (i64 i = start; i < pixels; i += step) {
    if (!is_inside(m, b, i)) continue;
    int v[3];
    read(m, b, i, v);
    unsigned int* entry = counts + 8 * (i64)((v[0] >> 1 << 14) | (v[1] >> 1 << 7) | (v[2] >> 1));
    for (int part = 0; part < 2; ++part) {
      if (part == 1 && !tissue(m, b, i, v, kind, limit, tables, threshold)) break;
      atomicAdd(entry + 4 * part, 1u);
      for (int c = 0; c < 3; ++c)
        if (v[c] & 1) atomicAdd(entry + 4 * part + 1 + c, 1u);
    }
  }
}
"""
DEFINES = (f"-DANGLES={ANGLE_BINS}", f"-DAMOUNTS={CONCENTRATION_BINS}")


@cache
def _kernel(name: str, device: int) -> Any:
    """The kernel for the current device, whose index is `device`: the shared memory it may use is set per device."""
    import cupy

    kernel = cupy.RawModule(code=SOURCE, options=("--std=c++14", *DEFINES)).get_function(name)
    if name in ("stain_angles", "stain_concentrations"):
        kernel.max_dynamic_shared_size_bytes = 4 * ANGLE_BINS
    return kernel


def launch(
    name: str, images: torch.Tensor, inside: torch.Tensor | None, blocks: int, *arguments: torch.Tensor | float | None
) -> None:
    """Run a kernel on images [B, 3, H, W] on torch's current stream. Tensors and None go as addresses."""
    import cupy
    import numpy as np

    def passed(value: torch.Tensor | float | None) -> object:
        if isinstance(value, torch.Tensor):
            return np.uint64(value.data_ptr())
        if value is None:
            return np.uint64(0)
        return np.float32(value) if isinstance(value, float) else np.int32(value)

    strides = (images.stride(0), images.stride(1), images.stride(3))
    view = (np.uint64(images.data_ptr()), np.int64(images.shape[2] * images.shape[3]), *map(np.int64, strides))
    shared = 4 * ANGLE_BINS if name in ("stain_angles", "stain_concentrations") else 0
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(images.device).cuda_stream)
    with cupy.cuda.Device(images.device.index), stream:
        values = (*view, passed(inside), *map(passed, arguments))
        _kernel(name, images.device.index)((blocks, images.shape[0]), (THREADS,), values, shared_mem=shared)
