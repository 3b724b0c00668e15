// The gradient of Dice + cross-entropy of samples of few pixels, where each sample has slopes of its own: the formulas of
// dice_ce_gradient_cpu.cpp, with vector lanes over samples or over classes.
// No std:: template here: the linker would keep one copy for all instruction sets, perhaps the AVX-512 one.
#include "losses/dice_ce.hpp"

#include <omp.h>

#include "losses/softmax_rows.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

// One block's or one pixel's classes, and the slopes h, a and b of every segment, the loss's gradient included.
struct Slopes {
  SoftmaxBlock s;
  float *x, *e, *soft, *h, *a, *b, *go;  // x, e, soft: by rows alone
  std::int64_t row;                      // of one of them

  Slopes(const DiceCeProblem& problem, const SoftmaxChunks& chunks, float* scratch)
      : s(problem.channels, chunks.block,
          chunks.rows    ? 0
          : problem.soft ? 3
                         : 2,
          0, scratch) {
    const std::int64_t C = problem.channels;
    row = chunks.rows ? (C + kLanes - 1) / kLanes * kLanes : C * chunks.block;
    x = scratch + 9 * chunks.block, e = x + row, soft = e + row, h = soft + row, a = h + row, b = a + row, go = b + row;
  }
};

// What a pixel's gradient is made of: dx_c = p_c (common + b_c p_c^(q-1)) - per_class h_c, but `own` at its class.
struct Common {
  float common, own;
};

template <bool kSquared>
inline Common common_of(float p, float rest, float of_others, float h, float a, float b, float base, float smoothing,
                        float per_class) {
  const float g = (1.0f - smoothing) * h, u = a + (kSquared ? b * p : b);
  return {g + base - of_others - p * u, p * base - g * rest - per_class * h + p * (u * rest - of_others)};
}

float gradient_of(const Planes& grad, std::int64_t b) { return static_cast<const float*>(grad.data)[b * grad.batch]; }

// Lanes over samples: slopes of class c at [c, lane].
void load_across(const DiceCeProblem& problem, const float* coefficients, const Planes& grad, float smoothing,
                 std::int64_t first, std::int64_t count, Slopes& k) {
  const std::int64_t C = problem.channels, B = problem.batch, block = k.s.block;
  const std::int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (std::int64_t i = 0; i < count; ++i) k.go[i] = gradient_of(grad, first + i);
  for (std::int64_t i = count; i < padded; ++i) k.go[i] = 0.0f;
  const bool wanted[] = {problem.soft || smoothing != 0.0f, problem.soft, true};
  float* const to[] = {k.h, k.a, k.b};
  for (int n = 0; n < 3; ++n)
    for (std::int64_t c = 0; wanted[n] && c < C; ++c) {
      float* __restrict out = to[n] + c * block;
      const float* __restrict go = k.go;
      load(Element::float32, coefficients, (n * B + first) * C + c, C, count, out);
      for (std::int64_t i = count; i < padded; ++i) out[i] = 0.0f;
      FASTMTL_EACH_LANE(i, padded) out[i] *= go[i];
    }
}

template <bool kSquared>
void differentiate_across(const DiceCeProblem& problem, const SoftmaxRun& run, const float* coefficients,
                          float smoothing, const Planes& gradient, Slopes& k) {
  alignas(64) float at_h[kBlock], at_a[kBlock], at_b[kBlock], base[kBlock], values[kBlock];
  const SoftmaxBlock& s = k.s;
  const std::int64_t C = problem.channels, B = problem.batch, padded = s.padded;
  const float per_class = smoothing / static_cast<float>(C);
  float* __restrict inverse = s.inverse, * __restrict common = s.extra, * __restrict own = s.cost;
  const float* __restrict valid = s.valid, * __restrict others = s.other, * __restrict owns = s.own;
  const std::int32_t* __restrict index = s.index;
  fill(base, padded, 0.0f);
  for (std::int64_t c = 0; smoothing != 0.0f && c < C; ++c) {
    const float* __restrict h = k.h + c * s.block;
    FASTMTL_EACH_LANE(i, padded) base[i] += per_class * h[i];
  }
  find_maximum(s, C);
  by_fours(C, [&](std::int64_t c, auto classes) { exponentials<true>(s, c, classes); });
  FASTMTL_EACH_LANE(i, padded) inverse[i] = valid[i] / (others[i] + owns[i]);
  fill(common, padded, 0.0f);
  if (problem.soft) {
    for (std::int64_t c = 0; c < C; ++c) {
      const float* __restrict e = s.exponentials + c * s.block, * __restrict t = s.soft + c * s.block;
      const float* __restrict h = k.h + c * s.block, * __restrict a = k.a + c * s.block, * __restrict b = k.b + c * s.block;
      FASTMTL_EACH_LANE(i, padded) {
        const float p = e[i] * inverse[i];
        common[i] += (1.0f - smoothing) * h[i] * t[i] - p * (a[i] * t[i] + (kSquared ? b[i] * p : b[i]));
      }
    }
    FASTMTL_EACH_LANE(i, padded) common[i] += base[i];
  } else {
    for (std::int64_t c = 0; c < C; ++c) {
      const float* __restrict e = s.exponentials + c * s.block, * __restrict b = k.b + c * s.block;
      FASTMTL_EACH_LANE(i, padded) {
        const float p = e[i] * inverse[i], term = (kSquared ? p * p : p) * b[i];
        common[i] += index[i] == static_cast<std::int32_t>(c) ? 0.0f : term;
      }
    }
    for (std::int64_t i = 0; i < padded; ++i) {
      const bool some = i < s.count && index[i] >= 0;
      const float* of = coefficients + (run.sample + i) * C + index[i];
      at_h[i] = some ? k.go[i] * of[0] : 0.0f;
      at_a[i] = some ? k.go[i] * of[B * C] : 0.0f;
      at_b[i] = some ? k.go[i] * of[2 * B * C] : 0.0f;
    }
    FASTMTL_EACH_LANE(i, padded) {
      const float p = owns[i] * inverse[i], rest = others[i] * inverse[i];
      const Common of = common_of<kSquared>(p, rest, common[i], at_h[i], at_a[i], at_b[i], base[i], smoothing,
                                            per_class);
      common[i] = of.common, own[i] = of.own;
    }
  }
  const bool direct = gradient.type == Element::float32 && run.stride(gradient) == 1 && s.whole;
  for (std::int64_t c = 0; c < C; ++c) {
    const std::int64_t at = run.start(gradient) + c * gradient.channel;
    float* __restrict out = direct ? static_cast<float*>(gradient.data) + at : values;
    const float* __restrict e = s.exponentials + c * s.block, * __restrict b = k.b + c * s.block;
    const float* __restrict h = k.h + c * s.block, * __restrict a = k.a + c * s.block;
    if (problem.soft) {
      const float* __restrict t = s.soft + c * s.block;
      FASTMTL_EACH_LANE(i, padded) {
        const float p = e[i] * inverse[i];
        out[i] = p * (common[i] + a[i] * t[i] + (kSquared ? b[i] * p : b[i])) -
                 h[i] * ((1.0f - smoothing) * t[i] + per_class);
      }
    } else {
      FASTMTL_EACH_LANE(i, padded) {
        const float p = e[i] * inverse[i], value = p * (common[i] + (kSquared ? b[i] * p : b[i]));
        out[i] = index[i] == static_cast<std::int32_t>(c) ? own[i] : value;
      }
      if (smoothing != 0.0f)
        FASTMTL_EACH_LANE(i, padded) out[i] -= index[i] == static_cast<std::int32_t>(c) ? 0.0f : per_class * h[i];
    }
    if (direct) continue;
    FASTMTL_EACH_LANE(i, padded) out[i] = valid[i] != 0.0f ? out[i] : 0.0f;  // not even a NaN slope
    store(gradient.type, out, gradient.data, at, run.stride(gradient), s.count);
  }
}

// Lanes over classes.
template <bool kSquared>
void differentiate_row(const DiceCeProblem& problem, std::int64_t sample, std::int64_t pixel, float smoothing,
                       Slopes& k) {
  const std::int64_t C = problem.channels;
  const std::int32_t y = k.s.index[pixel];
  const float per_class = smoothing / static_cast<float>(C);
  const RowSoftmax of = softmax_row(problem, sample, pixel, y, k.x, k.e);
  const float inverse = of.inverse;
  float* __restrict e = k.e, * __restrict out = k.x;
  const float* __restrict h = k.h, * __restrict a = k.a, * __restrict b = k.b, * __restrict t = k.soft;
  float sum = 0.0f, base = 0.0f;
  if (smoothing != 0.0f)
    FASTMTL_EACH_LANE(c, k.row) base += per_class * h[c];
  if (problem.soft) {
    load_row(problem.target, sample, pixel, C, 0.0f, k.soft);
    FASTMTL_EACH_LANE(c, k.row) {
      const float p = e[c] * inverse;
      sum += (1.0f - smoothing) * h[c] * t[c] - p * (a[c] * t[c] + (kSquared ? b[c] * p : b[c]));
    }
    sum += base;
    FASTMTL_EACH_LANE(c, k.row) {
      const float p = e[c] * inverse;
      out[c] = p * (sum + a[c] * t[c] + (kSquared ? b[c] * p : b[c])) - h[c] * ((1.0f - smoothing) * t[c] + per_class);
    }
    return;
  }
  FASTMTL_EACH_NUMBERED_LANE(c, k.row) {
    const float p = e[c] * inverse, term = (kSquared ? p * p : p) * b[c];
    sum += c == y ? 0.0f : term;
  }
  const float at_h = y >= 0 ? h[y] : 0.0f, at_a = y >= 0 ? a[y] : 0.0f, at_b = y >= 0 ? b[y] : 0.0f;
  const Common pair = common_of<kSquared>(of.own * inverse, of.other * inverse, sum, at_h, at_a, at_b, base, smoothing,
                                          per_class);
  const float common = pair.common;
  FASTMTL_EACH_LANE(c, k.row) {
    const float p = e[c] * inverse;
    out[c] = p * (common + (kSquared ? b[c] * p : b[c])) - per_class * h[c];
  }
  if (y >= 0) out[y] = pair.own;
}

void load_rows(const DiceCeProblem& problem, const float* coefficients, float go, std::int64_t sample, Slopes& k) {
  float* const to[] = {k.h, k.a, k.b};
  for (int n = 0; n < 3; ++n) {
    const float* __restrict from = coefficients + (n * problem.batch + sample) * problem.channels;
    float* __restrict out = to[n];
    for (std::int64_t c = 0; c < problem.channels; ++c) out[c] = go * from[c];
    for (std::int64_t c = problem.channels; c < k.row; ++c) out[c] = 0.0f;
  }
}

}  // namespace

void dice_ce_small_planes_gradient(const DiceCeProblem& problem, const DiceCeSmallPlanesWork& work, const Planes& grad,
                                   const float* coefficients, float smoothing, const Planes& gradient) {
  const SoftmaxChunks& chunks = work.chunks;
  const std::int64_t units = chunks.units(problem.batch), C = problem.channels;
#pragma omp parallel num_threads(work.threads) if (work.threads > 1)
  {
    Slopes k(problem, chunks, work.scratch + omp_get_thread_num() * work.scratch_size);
    const auto write = [&](const SoftmaxRun& run, const float* values, std::int64_t pixel) {
      store(gradient.type, values, gradient.data, run.start(gradient) + pixel * gradient.pixel, gradient.channel, C);
    };
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit) {
      if (chunks.rows) {
        const SoftmaxRun run = {unit, 0, problem.pixels, false};
        const bool any = k.s.fill_classes(problem, run);
        load_rows(problem, coefficients, gradient_of(grad, unit), unit, k);
        for (std::int64_t pixel = 0; pixel < problem.pixels; ++pixel) {
          if (!any || k.s.valid[pixel] == 0.0f)
            fill(k.x, k.row, 0.0f);
          else
            (problem.squared ? differentiate_row<true> : differentiate_row<false>)(problem, unit, pixel, smoothing, k);
          write(run, k.x, pixel);
        }
        continue;
      }
      const std::int64_t first = unit * chunks.pixels, left = problem.batch - first;
      load_across(problem, coefficients, grad, smoothing, first, left < chunks.pixels ? left : chunks.pixels, k);
      for_each_run(problem, chunks, unit, [&](const SoftmaxRun& run) {
        if (k.s.fill(problem, run))
          return (problem.squared ? differentiate_across<true>
                                  : differentiate_across<false>)(problem, run, coefficients, smoothing, gradient, k);
        fill(k.s.top, k.s.padded, 0.0f);
        for (std::int64_t c = 0; c < C; ++c)
          store(gradient.type, k.s.top, gradient.data, run.start(gradient) + c * gradient.channel, run.stride(gradient),
                k.s.count);
      });
    }
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
