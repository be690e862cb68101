// One time step of a neuron, forward and backward: the only source of its arithmetic.
//
// Plain C++ that NVRTC, nvcc and host compilers accept; lif.cu and lif.cpp put loops around it.
// The settings of a layer are compile-time constants (a "variant"), so that no loop branches:
//
//   SJ_KIND         0 IF, 1 LIF, 2 PLIF
//   SJ_DECAY_INPUT  input decays too
//   SJ_HARD         hard reset to `reset`, else soft reset by `threshold` (*)
//   SJ_DETACH       the reset carries no gradient
//   SJ_SURROGATE    row of the table in surrogates.py
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
#if SJ_SURROGATE == 0  // Sigmoid: a s (1 - s); with e = exp(-a |u|) nothing overflows
  const A e = exponential(minus_absolute(a * u));
  const A d = A(1) + e;
  return ratio(a * e, d * d);
#elif SJ_SURROGATE == 1  // ATan
  const A z = A(1.5707963267948966) * a * u;
  return ratio(a * A(0.5), fused(z, z, A(1)));
#elif SJ_SURROGATE == 2  // PiecewiseQuadratic
  const A z = a - a * a * absolute(u);
  return select(z < A(0), A(0), z);  // a nan stays one
#elif SJ_SURROGATE == 3  // PiecewiseExp
  return a * A(0.5) * exponential(a * minus_absolute(u));
#elif SJ_SURROGATE == 4  // SoftSign: 1 / (2 a (1 / a + |u|)^2) = (a / 2) / (1 + a |u|)^2
  const A z = fused(a, absolute(u), A(1));
  return ratio(a * A(0.5), z * z);
#elif SJ_SURROGATE == 5  // SuperSpike
  const A z = A(1) + absolute(u);
  return ratio(a, z * z);
#elif SJ_SURROGATE == 6  // Erf
  const A z = a * u;
  return a * A(0.56418958354775629) * exponential(-(z * z));
#elif SJ_SURROGATE == 7  // Rect
  return select(absolute(u) < A(0.5) / a, a, A(0));
#elif SJ_SURROGATE == 8  // Tanh: 1 / cosh(z)^2 = 4 e / (1 + e)^2 with e = exp(-2 |z|)
  const A e = exponential(A(2) * minus_absolute(a * u));
  const A d = A(1) + e;
  const A t = exponential(-a);  // tanh(a / 2) = (1 - t) / (1 + t)
  return a / (A(2) * ((A(1) - t) / (A(1) + t))) * ratio(A(4) * e, d * d);
#else
#error "SJ_SURROGATE is not a row of the surrogate table"
#endif
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
