// Sums and gradient of cross-entropy and softmax focal loss. The slope of a focal loss in x_c is w (p_c - [c = y]) with
// w = a_y (u^gamma + gamma u^(gamma-1) p_y L); at c = y that is -w u, where p_y - 1 would cancel. Label smoothing adds
// smoothing / C (A p_c - a_c), A the sum of all a.
#include "losses/class_loss.hpp"

#include <omp.h>

#include "core/vec_pow.hpp"
#include "losses/softmax_rows.hpp"

namespace fastmtl {
namespace FASTMTL_ISA {
namespace {

float factor_of(const ClassLossProblem& problem, std::int64_t c) {
  return problem.factors == nullptr ? 1.0f : problem.factors[c];
}

float sum_of_factors(const ClassLossProblem& problem) {
  double sum = 0.0;
  for (std::int64_t c = 0; c < problem.channels; ++c) sum += static_cast<double>(factor_of(problem, c));
  return static_cast<float>(sum);
}

// Whether rows of e can be stored in the gradient until they are turned into it.
bool keeps_rows(const Planes& gradient) { return gradient.type == Element::float32 && gradient.channel == 1; }

// Everything of a run that does not depend on the class, a_y of each pixel into `factors`, and with kStore e of every
// class: into the block or, by rows, into `gradient` if that can be. Rows that the forward has kept are not read: their
// e come as late as they are needed. False where no pixel is valid.
template <bool kStore>
bool read_run(const ClassLossProblem& problem, const ClassLossWork& work, const SoftmaxRun& run, SoftmaxBlock& s,
              float* factors, const Planes& gradient) {
  const bool rows = work.chunks.rows;
  if (rows) {
    if (!s.fill_classes(problem, run)) return false;
    if (kStore && work.kept.top != nullptr)
      recall_rows(problem, run, s, work.kept.top, work.kept.other);
    else if (kStore && keeps_rows(gradient))
      read_rows<kStore>(problem, run, s, gradient);
    else
      read_rows<false>(problem, run, s, gradient);
  } else {
    if (!s.fill(problem, run)) return false;
    find_maximum(s, problem.channels);
    by_fours(problem.channels, [&](std::int64_t c, auto classes) { exponentials<kStore>(s, c, classes); });
  }
  normalise(s);
  const std::int32_t* index = s.index;
  if (problem.factors == nullptr) {
    FASTMTL_EACH_LANE(i, s.padded) factors[i] = index[i] >= 0 ? 1.0f : 0.0f;
  } else if (rows) {
    for (std::int64_t i = 0; i < s.padded; ++i) factors[i] = index[i] >= 0 ? problem.factors[index[i]] : 0.0f;
  } else {
    ConstFloats table = s.slopes[0] + 2;
    FASTMTL_EACH_LANE(i, s.padded) factors[i] = table[index[i]];
  }
  return true;
}

template <int kGamma>
void losses_of(const SoftmaxBlock& s, float gamma, ConstFloats factors, Floats out) {
  ConstFloats other = s.other, inverse = s.inverse, cost = s.cost;
  FASTMTL_EACH_LANE(i, s.padded) out[i] = factors[i] * power<kGamma>(other[i] * inverse[i], gamma) * cost[i];
}

// What label smoothing makes of the losses.
void smooth(const ClassLossProblem& problem, bool rows, const SoftmaxRun& run, const SoftmaxBlock& s, float all,
            Floats out) {
  const float share = problem.smoothing / static_cast<float>(problem.channels), own = 1.0f - problem.smoothing;
  ConstFloats top = s.top, log_sum = s.extra;
  FASTMTL_EACH_LANE(i, s.padded) out[i] = own * out[i] + share * all * log_sum[i];
  if (rows) {
    for (std::int64_t i = 0; i < s.count; ++i) {
      float sum = 0.0f;
      const std::int64_t start = run.start(problem.logits) + i * run.stride(problem.logits);
      for_each_part(problem.logits, start, problem.channels, [&](const float* x, std::int64_t first, std::int64_t n) {
        n = problem.channels - first < n ? problem.channels - first : n;
        for (std::int64_t c = 0; c < n; ++c) sum += factor_of(problem, first + c) * (top[i] - x[c]);
      });
      out[i] += share * sum;
    }
    return;
  }
  for (std::int64_t c = 0; c < problem.channels; ++c) {
    ConstFloats x = s.logits + c * s.logits_stride;
    const float factor = share * factor_of(problem, c);
    FASTMTL_EACH_LANE(i, s.padded) out[i] += factor * (top[i] - x[i]);
  }
}

// What the backward may want of a run of samples of one pixel.
void keep_rows(const KeptRows& kept, const SoftmaxRun& run, const SoftmaxBlock& s, bool any) {
  for (std::int64_t i = 0; kept.top != nullptr && i < run.count; ++i) {
    const bool valid = any && s.valid[i] != 0.0f;
    kept.top[run.sample + i] = valid ? s.top[i] : 0.0f;
    kept.other[run.sample + i] = valid ? s.other[i] : 0.0f;
  }
}

// Calls body(block, losses, factors) for every run of a unit that has a valid pixel.
template <typename Body>
void for_each_loss(const ClassLossProblem& problem, const ClassLossWork& work, std::int64_t unit, SoftmaxBlock& block,
                   Body body) {
  alignas(64) float losses[kBlock], factors[kBlock];
  const auto losses_at = pick(problem.gamma, losses_of<0>, losses_of<1>, losses_of<2>, losses_of<kAny>);
  const float all = problem.smoothing == 0.0f ? 0.0f : sum_of_factors(problem);
  for_each_run(problem, work.chunks, unit, [&](const SoftmaxRun& run) {
    const bool any = read_run<false>(problem, work, run, block, factors, {});
    keep_rows(work.kept, run, block, any);
    if (!any) return;
    losses_at(block, problem.gamma, factors, losses);
    if (problem.smoothing != 0.0f) smooth(problem, work.chunks.rows, run, block, all, losses);
    ConstFloats valid = block.valid;
    FASTMTL_EACH_LANE(i, block.padded) losses[i] = valid[i] != 0.0f ? losses[i] : 0.0f;
    body(block, losses, problem.by_weight ? factors : block.valid);
  });
}

// p_c's factor and the slope at the own class, of each pixel, times `scale`; smoothing's share is per_class.
template <int kGamma>
void weigh(const SoftmaxBlock& s, const ClassLossProblem& problem, ConstFloats factors, ConstFloats scale, float all,
           Floats of_p) {
  constexpr float kLargest = 1.0e30f;  // far from overflow: the compiler may multiply in another order
  const float per_class = problem.smoothing / static_cast<float>(problem.channels), rest = 1.0f - problem.smoothing;
  const float gamma = problem.gamma;
  ConstFloats other = s.other, own = s.own, inverse = s.inverse, cost = s.cost;
  Floats at_class = s.extra;
  FASTMTL_EACH_LANE(i, s.padded) {
    const float u = other[i] * inverse[i], p = own[i] * inverse[i];
    const float loss = cost[i] > kLargest ? kLargest : cost[i];  // times p_y = 0 of an infinite logit: 0
    const float surprise = p * loss;
    float slope = power<kGamma>(u, gamma);
    if (kGamma == 1) slope += surprise;
    if (kGamma == 2) slope += 2.0f * u * surprise;
    if (kGamma == kAny) {
      const float ratio = u > 0.0f ? surprise / u : 0.0f;  // u^(gamma - 1) alone could be infinite
      slope *= 1.0f + gamma * ratio;
    }
    const float w = rest * factors[i] * slope;
    of_p[i] = scale[i] * (w + per_class * all);
    at_class[i] = scale[i] * (per_class * (all * p - factors[i]) - w * u);
  }
  FASTMTL_EACH_LANE(i, s.padded) of_p[i] *= inverse[i];
}

void write_class(const ClassLossProblem& problem, const SoftmaxBlock& s, const SoftmaxRun& run, std::int64_t c,
                 ConstFloats of_p, ConstFloats scale, const Planes& gradient) {
  alignas(64) float values[kBlock];
  ConstFloats e = s.exponentials + c * s.block, at_class = s.extra, valid = s.valid;
  const std::int32_t* __restrict index = s.index;
  const float share = problem.smoothing / static_cast<float>(problem.channels);
  const float spread = share == 0.0f ? 0.0f : share * factor_of(problem, c);  // not 0 times an infinite factor
  const std::int64_t start = run.start(gradient) + c * gradient.channel;
  const bool direct = gradient.type == Element::float32 && run.stride(gradient) == 1 && s.whole;
  Floats out = direct ? static_cast<float*>(gradient.data) + start : values;
  FASTMTL_EACH_LANE(i, s.padded) {
    const float value = e[i] * of_p[i] - spread * scale[i];
    out[i] = index[i] == static_cast<std::int32_t>(c) ? at_class[i] : value;
  }
  if (direct) return;
  FASTMTL_EACH_LANE(i, s.padded) values[i] = valid[i] != 0.0f ? values[i] : 0.0f;  // not even a NaN slope
  store(gradient.type, values, gradient.data, start, run.stride(gradient), s.count);
}

// stored: e of a valid pixel is already where its gradient goes.
void write_row(const ClassLossProblem& problem, bool stored, const SoftmaxBlock& s, const SoftmaxRun& run,
               std::int64_t i, float of_p, float scale, const Planes& gradient) {
  alignas(64) float values[kRowPart];
  const std::int64_t C = problem.channels, start = run.start(problem.logits) + i * run.stride(problem.logits);
  const std::int64_t at = run.start(gradient) + i * run.stride(gradient);
  const float spread = scale * problem.smoothing / static_cast<float>(C), top = s.top[i];
  const bool valid = s.valid[i] != 0.0f;
  if (valid && stored) {
    Floats out = static_cast<float*>(gradient.data) + at;
#pragma GCC ivdep
    for (std::int64_t c = 0; c < C; ++c) out[c] *= of_p;
    for (std::int64_t c = 0; spread != 0.0f && c < C; ++c) out[c] -= spread * factor_of(problem, c);
  } else {
    for_each_part(problem.logits, start, C, [&](const float* x, std::int64_t first, std::int64_t padded) {
      const std::int64_t count = C - first < padded ? C - first : padded;
      for (std::int64_t done = 0; done < count; done += kRowPart) {
        const std::int64_t some = count - done < kRowPart ? count - done : kRowPart;
        const std::int64_t place = at + (first + done) * gradient.channel;
        const bool direct = keeps_rows(gradient) && some % kLanes == 0;
        Floats out = direct ? static_cast<float*>(gradient.data) + place : values;
        ConstFloats from = x + done;
        if (valid)
          FASTMTL_EACH_LANE(c, some + kLanes - 1) out[c] = exp_minus(top - from[c]) * of_p;
        else
          fill(out, some + kLanes - 1, 0.0f);
        for (std::int64_t c = 0; valid && spread != 0.0f && c < some; ++c)
          out[c] -= spread * factor_of(problem, first + done + c);
        if (!direct) store(gradient.type, values, gradient.data, place, gradient.channel, some);
      }
    });
  }
  const std::int64_t y = s.index[i];
  if (valid && y >= 0) store(gradient.type, s.extra + i, gradient.data, at + y * gradient.channel, 1, 1);
}

SoftmaxBlock block_of(const ClassLossProblem& problem, const ClassLossWork& work) {
  SoftmaxBlock block(problem.channels, work.chunks.block, work.chunks.rows ? 0 : 2, work.chunks.rows ? 0 : 1,
                     work.scratch + omp_get_thread_num() * work.scratch_size);
  if (work.chunks.rows) return block;
  block.slopes[0][0] = block.slopes[0][1] = 0.0f;
  for (std::int64_t c = 0; c < problem.channels; ++c) block.slopes[0][c + 2] = factor_of(problem, c);
  return block;
}

}  // namespace

// sums [B, chunks] along the pixels of samples.
void class_loss_sums(const ClassLossProblem& problem, const ClassLossWork& work, ClassLossSums* sums) {
#pragma omp parallel num_threads(work.threads) if (work.threads > 1)
  {
    SoftmaxBlock block = block_of(problem, work);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < problem.batch * work.chunks.count; ++unit) {
      ClassLossSums total = {0.0, 0.0, 0.0};
      for_each_loss(problem, work, unit, block, [&](const SoftmaxBlock& s, const float* losses, const float* divisors) {
        float loss = 0.0f, divisor = 0.0f;
        FASTMTL_EACH_LANE(i, s.padded) loss += losses[i];
        FASTMTL_EACH_LANE(i, s.padded) divisor += divisors[i];
        total.loss += loss, total.divisor += divisor, total.outside += s.outside;
      });
      sums[unit] = total;
    }
  }
}

// sums [groups] across samples of few pixels, with the coefficient [B] of each applied, and losses [B] if not null.
void class_losses(const ClassLossProblem& problem, const ClassLossWork& work, float factor, bool divided, float* loss,
                  float* coefficients, ClassLossSums* sums) {
#pragma omp parallel num_threads(work.threads) if (work.threads > 1)
  {
    SoftmaxBlock block = block_of(problem, work);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < work.chunks.count; ++unit) {
      alignas(64) float own[kBlock], over[kBlock];
      const std::int64_t first = unit * work.chunks.pixels, left = problem.batch - first;
      const std::int64_t count = left < work.chunks.pixels ? left : work.chunks.pixels;
      double outside = 0.0, total = 0.0, divisor = 0.0;
      fill(own, work.chunks.block, 0.0f), fill(over, work.chunks.block, 0.0f);
      for_each_loss(problem, work, unit, block, [&](const SoftmaxBlock& s, const float* losses, const float* divisors) {
        FASTMTL_EACH_LANE(i, s.padded) own[i] += losses[i];
        FASTMTL_EACH_LANE(i, s.padded) over[i] += divisors[i];
        outside += s.outside;
      });
      for (std::int64_t i = 0; i < count; ++i) {
        const float slope = divided && over[i] != 0.0f ? factor / over[i] : factor;
        coefficients[first + i] = slope;
        own[i] *= slope;
        total += static_cast<double>(own[i]), divisor += static_cast<double>(over[i]);
      }
      for (std::int64_t i = 0; loss != nullptr && i < count; ++i) loss[first + i] = own[i];
      sums[unit] = {total, divisor, outside};
    }
  }
}

void class_loss_gradient(const ClassLossProblem& problem, const ClassLossWork& work, const Planes& grad,
                         const float* coefficients, const Planes& gradient) {
  const std::int64_t units = work.chunks.units(problem.batch);
  const auto weigh_block = pick(problem.gamma, weigh<0>, weigh<1>, weigh<2>, weigh<kAny>);
  const float all = problem.smoothing == 0.0f ? 0.0f : sum_of_factors(problem);
  const bool stored = keeps_rows(gradient) && work.kept.top == nullptr;
#pragma omp parallel num_threads(work.threads) if (work.threads > 1)
  {
    SoftmaxBlock block = block_of(problem, work);
#pragma omp for schedule(static)
    for (std::int64_t unit = 0; unit < units; ++unit)
      for_each_run(problem, work.chunks, unit, [&](const SoftmaxRun& run) {
        alignas(64) float factors[kBlock], scale[kBlock], of_p[kBlock];
        if (!read_run<true>(problem, work, run, block, factors, gradient)) block.clear();
        for (std::int64_t i = 0; i < run.count; ++i) {
          const std::int64_t b = run.across ? run.sample + i : run.sample;
          scale[i] = static_cast<const float*>(grad.data)[b * grad.batch] * coefficients[b];
        }
        for (std::int64_t i = run.count; i < block.padded; ++i) scale[i] = 0.0f;
        weigh_block(block, problem, factors, scale, all, of_p);
        if (work.chunks.rows)
          for (std::int64_t i = 0; i < run.count; ++i)
            write_row(problem, stored, block, run, i, of_p[i], scale[i], gradient);
        else
          for (std::int64_t c = 0; c < problem.channels; ++c)
            write_class(problem, block, run, c, of_p, scale, gradient);
      });
  }
}

}  // namespace FASTMTL_ISA
}  // namespace fastmtl
