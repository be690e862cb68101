// One time step of a neuron, forward and backward: the only source of its arithmetic.
//
// Plain C++ that NVRTC, nvcc and host compilers accept; lif.cu and lif.cpp put loops around it.
// The settings of a layer are compile-time constants (a "variant"), so that no loop branches:
//
//   SJ_KIND         0 IF, 1 LIF, 2 PLIF
//   SJ_DECAY_INPUT  input decays too
//   SJ_HARD         hard reset to `reset`, else soft reset by `threshold` (*)
//   SJ_DETACH       the reset carries no gradient
//   SJ_SURROGATE    statements that return g' of u, with parameter a: from the table in surrogates.py
//   SJ_NAMES, SJ_SUMS, SJ_OF, SJ_MAXIMA, SJ_STEP  what is recorded: from the table in statistics.py
//   SJ_INVERSE      (LIF, optional) `decay` is 1 / tau of a tau that is a power of two, where the
//                   product equals the quotient to the last bit (*)
//
// (*) On a CPU these are template arguments of Neuron: one library serves every tau and reset.
// lif.cu defines SJ_DEVICE: there the surrogate's derivative and the gradients, which need not
// equal the reference bit by bit, use the GPU's fast exponential and division (a few ulp).
// Order of operations as in reference.py; compile without contraction into fused multiply-adds,
// then spikes and potentials equal the reference's to the last bit.
#pragma once

#ifndef SJ_INVERSE
#define SJ_INVERSE 0
#endif
#ifndef SJ_HARD
#define SJ_HARD 0
#endif
#ifndef SJ_SURROGATE  // where no g' is needed
#define SJ_SURROGATE return u;
#endif
#ifndef SJ_NAMES
#define SJ_NAMES 0
#define SJ_SUMS 0
#define SJ_OF 0
#define SJ_MAXIMA 0
#define SJ_STEP
#endif

#ifdef SJ_DEVICE
#define SJ_FN __device__ __forceinline__
#else
#include <cstdint>
#include <cstring>
#define SJ_FN static inline __attribute__((always_inline))
#define SJ_MEMBER inline __attribute__((always_inline))
#include "lanes.h"
#endif

namespace sj {

template <typename A>
struct Numbers {
  A threshold;  // V_threshold
  A reset;      // V_reset; 0 for a soft reset, where it is the resting potential of the charge
  A decay;      // tau (LIF) or q = sigmoid(w) (PLIF)
  A alpha;      // parameter of the surrogate
#ifndef SJ_DEVICE
  A keep, landing;  // V after a spike is H keep + landing: 0, reset or 1, -threshold
#endif
};

template <typename A, bool inverse = SJ_INVERSE, bool hard = SJ_HARD>
struct Neuron : Numbers<A> {
  static constexpr bool kInverse = inverse, kHard = hard;
};

// ---- functions ---------------------------------------------------------------------------------

template <typename A>
SJ_FN A absolute(A x) {
  return x < A(0) ? -x : x;
}

template <typename A>
SJ_FN A minus_absolute(A x) {
  return -absolute(x);
}

template <typename A>
SJ_FN A select(bool condition, A a, A b) {
  return condition ? a : b;
}

// The larger of two numbers, nan if one of them is.
template <typename A>
SJ_FN A larger(A a, A b) {
  return select((b > a) | (b != b), b, a);
}

// a / b where the last bits do not matter.
template <typename A>
SJ_FN A ratio(A a, A b) {
  return a / b;
}

#ifdef SJ_DEVICE
SJ_FN float absolute(float x) { return fabsf(x); }
SJ_FN float minus_absolute(float x) { return -fabsf(x); }
SJ_FN float ratio(float a, float b) { return __fdividef(a, b); }
SJ_FN float exponential(float x) { return __expf(x); }
SJ_FN float fused(float a, float b, float c) { return a * b + c; }
#else

// For x <= 0, all that is asked for below; relative error below 3e-7 where x > -10, 2e-6 anywhere.
// Fused operations are for g' and for gradients; a potential never takes one.
SJ_FN Lanes<float> exponential(Lanes<float> x) {
  using L = Lanes<float>;
  x = select(L(-87.0f) > x, L(-87.0f), x);
  // exp(x) = 2^n 2^f, |f| <= 1/2; adding 1.5 * 2^23 rounds to the nearest integer n.
  const L rounded = fused(x, L(1.44269504f), L(12582912.0f));
  const L f = fused(x, L(1.44269504f), L(12582912.0f) - rounded);
  L p = fused(L(1.3264727e-3f), f, L(9.6715128e-3f));  // minimax polynomial of 2^f
  p = fused(p, f, L(5.5507337e-2f));
  p = fused(p, f, L(2.4022242e-1f));
  p = fused(p, f, L(6.9314698e-1f));
  p = fused(p, f, L(1.0f));
  return raise(p, rounded);
}
#endif

// ---- forward -----------------------------------------------------------------------------------

// The part of x that leaks in one step: x / tau (LIF) or x q (PLIF).
template <typename A, typename N>
SJ_FN A leak(A x, const N& n) {
  if constexpr (SJ_KIND != 1 || N::kInverse) return x * n.decay;
#ifdef SJ_DEVICE
  // The quotient to the last bit: x (1 / tau), corrected twice by its exact remainder (Markstein),
  // for x = 0 and |x| > 1e-30. The compiler's own division takes 1 / tau anew every time and
  // branches, which costs half of the whole step.
  const A inverse = A(1) / n.decay;
  A q = x * inverse;
  q = fmaf(fmaf(-q, n.decay, x), inverse, q);
  q = fmaf(fmaf(-q, n.decay, x), inverse, q);
  return absolute(x) <= A(3.4028235e38) ? q : x;  // an infinite x has no remainder
#else
  return x / n.decay;
#endif
}

// H from the potential v before the step and the input current x.
template <typename A, typename N>
SJ_FN A charge(A x, A v, const N& n) {
#if SJ_KIND == 0
  return v + x;
#elif SJ_DECAY_INPUT
  return v + leak(x - (v - n.reset), n);
#else
  return v - leak(v - n.reset, n) + x;
#endif
}

template <typename A, typename N>
SJ_FN A fire(A h, const N& n) {
  return select(h >= n.threshold, A(1), A(0));
}

// V after the reset.
template <typename A, typename N>
SJ_FN A settle(A h, A s, const N& n) {
#ifndef SJ_DEVICE
  // Both resets in one, exact: nothing is rounded twice, and an infinite h still makes V nan after
  // a hard one. (A soft reset by an infinite threshold, nan by s * threshold, is not for here.)
  return select(h >= n.threshold, fused(h, n.keep, n.landing), h);
#elif SJ_HARD
  return s != A(0) ? fmaf(h, A(0), n.reset) : h;  // likewise
#else
  return h - s * n.threshold;
#endif
}

// g'(u), u = H - V_threshold.
template <typename A, typename N>
SJ_FN A derivative(A u, const N& n) {
  const A a = n.alpha;
  SJ_SURROGATE
}

// ---- statistics --------------------------------------------------------------------------------

// Statistics are the mean or the maximum over a map of sums over time; two may be of one sum.
constexpr int kNames = SJ_NAMES, kSums = SJ_SUMS;
constexpr int kRows = kNames ? kNames : 1;  // of arrays, which are never empty

// The sum that statistic k is of.
SJ_FN constexpr int sum_of(int k) { return SJ_OF >> 4 * k & 15; }

SJ_FN constexpr bool is_maximum(int k) { return SJ_MAXIMA >> k & 1; }

// What is summed over time, at one step: spikes s, V after the reset, H before it, and g'.
template <typename A>
SJ_FN void quantities(A (&value)[kRows], A s, A v, A h, A g) {
  SJ_STEP
}

// ---- backward ----------------------------------------------------------------------------------

template <typename A>
struct Gradient {
  A x;      // dL/dx[t]
  A carry;  // dL/dV[t-1]
  A h;      // dL/dH[t]
};

// dV/dH, with g = g'(H - V_threshold).
template <typename A, typename N>
SJ_FN A reset_slope(A h, A g, const N& n) {
  if constexpr (N::kHard) {
    const A kept = select(h >= n.threshold, A(0), A(1));
    if constexpr (SJ_DETACH) return kept;
    return fused(n.reset - h, g, kept);
  }
  if constexpr (SJ_DETACH) return A(1);
  return A(1) - n.threshold * g;
}

// From dL/dS[t], dL/dV[t] (what later steps and the caller gave) and H[t].
template <typename A, typename N>
SJ_FN Gradient<A> unwind(A grad_s, A grad_v, A h, const N& n) {
  const A g = derivative(h - n.threshold, n);
  const A dh = fused(grad_s, g, grad_v * reset_slope(h, g, n));
#if SJ_KIND == 0
  return {dh, dh, dh};
#else
  A leaked;
  if constexpr (SJ_KIND == 1 && !N::kInverse)
    leaked = ratio(dh, n.decay);
  else
    leaked = dh * n.decay;
#if SJ_DECAY_INPUT
  return {leaked, dh - leaked, dh};
#else
  return {dh, dh - leaked, dh};
#endif
#endif
}

// dH/dq of PLIF.
template <typename A, typename N>
SJ_FN A pull(A x, A v, const N& n) {
#if SJ_DECAY_INPUT
  return x - (v - n.reset);
#else
  return -(v - n.reset);
#endif
}

}  // namespace sj
