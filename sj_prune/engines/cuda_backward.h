// The backward pass of the CUDA engine.
#pragma once

#include "cuda_words.h"

constexpr int kThreads = 128;
// Loads in flight a thread: at least four, and eight elements.
constexpr int kUnroll = SJ_VEC > 1 || SJ_CHUNK % 8 ? 4 : 8;
constexpr bool kSpikes = SJ_GRADS & 1, kSequence = SJ_GRADS & 2, kPlif = SJ_KIND == 2;
// Blocks a multiprocessor must hold, as in the forward pass, by the potentials a thread keeps, and by
// what else it does.
constexpr int kKept = SJ_VEC * SJ_CHUNK;
constexpr int kBlocks = kKept > (kPlif && kSequence ? 16 : 32) ? 2 : (kKept > 16 ? 3 : 4);

struct BackwardArguments {  // its mirror: BackwardArguments in launch.py
  const Io* grad_spikes;
  const float* grad_v;  // may be null
  const float* grad_v_seq;
  const Io* x;
  const float* v0;
  const float* q;  // PLIF's sigmoid(w)
  Io* grad_x;
  float* grad_v0;  // may be null
  double* grad_q;  // PLIF: one sum a block
  float* starts;   // [ceil(T / SJ_CHUNK) - 1, elements]: V before every chunk but the first
  Long elements;   // of one step
  int steps;       // T
  int v0_each;     // 0 where v0 is one number
  float threshold, reset, decay, alpha;
};

// Goes on by one step of a tensor. The compiler must not take the sum apart again: it would find
// each step's address by a product of 64 bits.
template <typename T>
SJ_FN void next(T*& at, Long stride) {
  at += stride;
#ifdef __CUDACC__
  asm volatile("" : "+l"(at));
  __builtin_assume(__isGlobal(at));
#endif
}

// Loads kUnroll steps, those of them that are among the `left`, and leaves `from` behind them.
SJ_FN void forth(const Io*& from, const BackwardArguments& b, int left, Pack<Io> (&to)[kUnroll]) {
#pragma unroll
  for (int j = 0; j < kUnroll; ++j) {
    if (j < left) to[j] = load(from);
    next(from, b.elements);
  }
}

// The same where `from` stands on the last of these steps and goes back.
SJ_FN void back(const Io*& from, const BackwardArguments& b, int left, Pack<Io> (&to)[kUnroll]) {
  if constexpr (kSpikes) {
#pragma unroll
    for (int j = kUnroll - 1; j >= 0; --j) {
      if (j < left) to[j] = load(from);
      next(from, -b.elements);
    }
  }
}

// Charge, fire, reset of up to SJ_CHUNK steps from `t`: leaves V after them in `v` and hands H of
// each step to `keep`.
template <typename Keep>
SJ_FN void advance(const BackwardArguments& b, const Neuron& n, Long at, int t, Pack<float>& v,
                   const Keep& keep) {
  const Io* from = b.x + t * b.elements + at;
  const int left = b.steps - t;
  Pack<Io> x[2][kUnroll];  // one half is on its way while the other is used
  forth(from, b, left, x[0]);
#pragma unroll
  for (int first = 0; first < SJ_CHUNK; first += kUnroll) {
    const int half = first / kUnroll % 2;
    if (first + kUnroll < SJ_CHUNK) forth(from, b, left - first - kUnroll, x[1 - half]);
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      if (first + j >= left) break;
#pragma unroll
      for (int e = 0; e < SJ_VEC; ++e) {
        const float h = sj::charge(widen(x[half][j].at[e]), v.at[e], n);
        keep(first + j, e, h);
        v.at[e] = sj::settle(h, sj::fire(h, n), n);
      }
    }
  }
}

// dH/dq of PLIF from H and V before the step; where input decays, q times that, which takes no x.
SJ_FN float pull(float h, float before, const Neuron& n) {
#if SJ_DECAY_INPUT
  return h - before;
#else
  return sj::pull(0.0f, before, n);
#endif
}

// Gradients of the elements at ..at + SJ_VEC; returns their part of dL/dq, as `pull` has it.
SJ_FN float unwind(const BackwardArguments& b, const Neuron& n, Long at) {
  const int last = (b.steps - 1) / SJ_CHUNK;
  Pack<float> v = initial(b.v0, b.v0_each, at);
  for (int chunk = 0; chunk < last; ++chunk) {
    advance(b, n, at, chunk * SJ_CHUNK, v, [](int, int, float) {});
    store(b.starts + chunk * b.elements + at, v);
  }
  Pack<float> carry;
  if (b.grad_v) carry = load(b.grad_v + at);
#pragma unroll
  for (int e = 0; e < SJ_VEC; ++e) carry.at[e] = b.grad_v ? carry.at[e] : 0.0f;
  float grad_q = 0.0f;
  for (int chunk = last; chunk >= 0; --chunk) {
    if (chunk < last)
      v = chunk ? load(b.starts + (chunk - 1) * b.elements + at) : initial(b.v0, b.v0_each, at);
    const int t = chunk * SJ_CHUNK, left = b.steps - t;
    float charges[SJ_CHUNK][SJ_VEC];
    const Pack<float> start = v;
    const Long end = (t + SJ_CHUNK - 1) * b.elements + at;
    const Io* given = b.grad_spikes + end;
    const float* given_v = b.grad_v_seq + end;
    Io* to = b.grad_x + end;
    Pack<Io> grads[2][kUnroll];  // as in `advance`; the first are on their way through it
    back(given, b, left - SJ_CHUNK + kUnroll, grads[0]);
    advance(b, n, at, t, v, [&](int j, int e, float h) { charges[j][e] = h; });
#pragma unroll
    for (int first = SJ_CHUNK - kUnroll; first >= 0; first -= kUnroll) {
      const int half = (SJ_CHUNK - first) / kUnroll % 2;
      if (first > 0) back(given, b, left - first + kUnroll, grads[half]);
#pragma unroll
      for (int j = kUnroll - 1; j >= 0; --j) {
        if (first + j < left) {
          if constexpr (kSequence) {
            const Pack<float> more = load(given_v);
#pragma unroll
            for (int e = 0; e < SJ_VEC; ++e) carry.at[e] += more.at[e];
          }
          Pack<Io> grad_x;
#pragma unroll
          for (int e = 0; e < SJ_VEC; ++e) {
            const float grad_s = kSpikes ? widen(grads[1 - half][j].at[e]) : 0.0f;
            const float h = charges[first + j][e];
            const auto g = sj::unwind(grad_s, carry.at[e], h, n);
            narrow(g.x, grad_x.at[e]);
            carry.at[e] = g.carry;
            if constexpr (kPlif) {
              const float last_h = first + j ? charges[first + j - 1][e] : 0.0f;
              const float before = sj::settle(last_h, sj::fire(last_h, n), n);
              grad_q += g.h * pull(h, first + j ? before : start.at[e], n);
            }
          }
          store(to, grad_x);
        }
        next(to, -b.elements);
        if constexpr (kSequence) next(given_v, -b.elements);
      }
    }
  }
  if (b.grad_v0) store(b.grad_v0 + at, carry);
  return grad_q;
}

// Sum over the block, in thread 0.
SJ_FN double total(double value) {
  __shared__ double shared[kThreads / kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = 0.0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) value += shared[warp];
  return value;
}

// Any dense layout that all tensors share. With dV and dS the given gradients, from t = T - 1 down:
//   dH[t] = dS[t] g' + (dV[t] + dH[t+1] dH[t+1]/dV[t]) dV/dH
//   dV/dH = 1 - S + (V_reset - H) g' (hard) or 1 - V_threshold g' (soft); no g' if detached
//   dx[t] = dH[t] dH/dx,   dv0 = dH[0] dH[0]/dV
//   dq    = sum over t and elements of dH[t] (x - (V[t-1] - V_reset)) (PLIF; without input decay
//           -(V[t-1] - V_reset))
// H of a chunk of SJ_CHUNK steps stays in registers; where there are several chunks, V before each
// comes from a first pass.
extern "C" __global__ void __launch_bounds__(kThreads, kBlocks)
    sj_backward(const BackwardArguments b) {
  const Neuron n = {b.threshold, b.reset, kPlif ? *b.q : b.decay, b.alpha};
  const Long stride = static_cast<Long>(gridDim.x) * kThreads * SJ_VEC;
  double grad_q = 0.0;
  for (Long at = (static_cast<Long>(blockIdx.x) * kThreads + threadIdx.x) * SJ_VEC;
       at < b.elements; at += stride) {
    const float part = unwind(b, n, at);
    if constexpr (kPlif) grad_q += static_cast<double>(part);
  }
  if constexpr (kPlif) {
    grad_q = total(grad_q);
    if (threadIdx.x == 0) b.grad_q[blockIdx.x] = grad_q;
  }
}

struct FinishArguments {
  const double* grad_q;  // one a block of sj_backward
  const float* q;
  float* grad_w;
  int blocks;
};

// One block: dw = q (1 - q) sum of dq, in which `pull` may have a q already.
extern "C" __global__ void __launch_bounds__(kThreads) sj_finish(const FinishArguments a) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < a.blocks; i += kThreads) sum += a.grad_q[i];
  sum = total(sum);
  const double q = *a.q;
  if (threadIdx.x == 0) *a.grad_w = static_cast<float>(sum * (SJ_DECAY_INPUT ? 1.0 - q : q * (1.0 - q)));
}
