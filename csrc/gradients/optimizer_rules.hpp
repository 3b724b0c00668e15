// AdamW, Adam and SGD for one element: the arithmetic that the CPU and the GPU kernel share.
//
// The CPU build forbids contraction, so every operation rounds separately and the result is bit-equal to
// fastmtl/reference/fused_step.py, which has the formulas on whole tensors.
#pragma once

#include <math.h>

#include <cstdint>

#if defined(__CUDACC__)
#define FASTMTL_INLINE __device__ __forceinline__
#else
#define FASTMTL_INLINE inline
#endif

namespace fastmtl {

// One tensor to update, as addresses. Without a `gradient` it is in the rows J, from `column` on; `first` and `second`
// are exp_avg and exp_avg_sq, or the momentum buffer and nothing. `step` counts the steps taken, float32; null: SGD
// that is past its first step.
struct Segment {
  std::int64_t parameter, first, second, step, gradient, column, count, group;
};
enum class Rule : int { adamw = 0, adam = 1, sgd = 2 };

// A parameter group's options. beta1 and beta2 are momentum and dampening for SGD.
struct Group {
  double rule, lr, weight_decay, beta1, beta2, eps, nesterov;
};

namespace {

#if defined(__CUDACC__)
FASTMTL_INLINE float square_root(float x) { return sqrtf(x); }
FASTMTL_INLINE double square_root(double x) { return sqrt(x); }
#else
inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }
#endif

template <typename Real>
struct Coefficients {
  Real rate;     // Adam: lr / (1 - beta1^t)
  Real decay;    // AdamW: 1 - lr weight_decay; else weight_decay
  Real first;    // what is kept of the first moment: only SGD's momentum, Adam's is in `fresh`
  Real fresh;    // share of the gradient that is new in the first moment
  Real second;   // beta2
  Real squared;  // 1 - beta2
  Real root;     // 1 / sqrt(1 - beta2^t)
  Real eps;
};

// `count`: steps taken with this one. All in float64, then rounded once.
template <typename Real>
FASTMTL_INLINE Coefficients<Real> coefficients(const Group& group, double lr, double count) {
  Coefficients<Real> c = {};
  c.decay = static_cast<Real>(group.weight_decay);
  c.rate = static_cast<Real>(lr);
  if (static_cast<Rule>(static_cast<int>(group.rule)) == Rule::sgd) {
    c.first = static_cast<Real>(group.beta1);
    // The first step takes the gradient whole, whatever the dampening.
    c.fresh = static_cast<Real>(count == 1.0 ? 1.0 : 1.0 - group.beta2);
    return c;
  }
  if (static_cast<Rule>(static_cast<int>(group.rule)) == Rule::adamw)
    c.decay = static_cast<Real>(1.0 - lr * group.weight_decay);
  c.rate = static_cast<Real>(lr / (1.0 - pow(group.beta1, count)));
  c.fresh = static_cast<Real>(1.0 - group.beta1);
  c.second = static_cast<Real>(group.beta2);
  c.squared = static_cast<Real>(1.0 - group.beta2);
  c.root = static_cast<Real>(1.0 / square_root(1.0 - pow(group.beta2, count)));
  c.eps = static_cast<Real>(group.eps);
  return c;
}

template <bool kDecoupled, typename Real>
FASTMTL_INLINE void adam(const Coefficients<Real>& c, Real g, Real& p, Real& m, Real& v) {
  if (kDecoupled) {
    p = p * c.decay;
  } else {
    g = g + c.decay * p;
  }
  m = m + c.fresh * (g - m);
  v = c.second * v + c.squared * (g * g);
  p = p - c.rate * (m / (square_root(v) * c.root + c.eps));
}

template <bool kNesterov, typename Real>
FASTMTL_INLINE void momentum(const Coefficients<Real>& c, Real g, Real& p, Real& m) {
  g = g + c.decay * p;
  m = c.first * m + c.fresh * g;
  p = p - c.rate * (kNesterov ? g + c.first * m : m);
}

template <typename Real>
FASTMTL_INLINE void descend(const Coefficients<Real>& c, Real g, Real& p) {
  p = p - c.rate * (g + c.decay * p);
}

}  // namespace
}  // namespace fastmtl
