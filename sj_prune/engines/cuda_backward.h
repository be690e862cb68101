// The backward pass of the CUDA engine.
#pragma once

#include "cuda_words.h"

constexpr int kThreads = 128;
constexpr int kUnroll = SJ_CHUNK < 4 ? SJ_CHUNK : 4;  // loads in flight a thread
// Blocks a multiprocessor must hold, as in the forward pass, by the potentials a thread keeps.
constexpr int kKept = SJ_VEC * SJ_CHUNK * (SJ_KIND == 2 ? 2 : 1);
constexpr int kBlocks = kKept > 32 ? 2 : (kKept > 16 ? 3 : 4);

constexpr bool kSpikes = SJ_GRADS & 1, kSequence = SJ_GRADS & 2, kPlif = SJ_KIND == 2;

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

// Charge, fire, reset of up to SJ_CHUNK steps from `t`: leaves V after them in `v` and, where
// wanted, hands H (and for PLIF dH/dq) of each step to `keep`.
template <typename Keep>
SJ_FN void advance(const BackwardArguments& b, const Neuron& n, Long at, int t, Pack<float>& v,
                   const Keep& keep) {
#pragma unroll
  for (int first = 0; first < SJ_CHUNK; first += kUnroll) {
    const Long from = (t + first) * b.elements + at;
    Pack<Io> x[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j)
      if (t + first + j < b.steps) x[j] = load(b.x + from + j * b.elements);
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      if (t + first + j >= b.steps) break;
#pragma unroll
      for (int e = 0; e < SJ_VEC; ++e) {
        const float input = widen(x[j].at[e]);
        const float h = sj::charge(input, v.at[e], n);
        keep(first + j, e, h, input, v.at[e]);
        v.at[e] = sj::settle(h, sj::fire(h, n), n);
      }
    }
  }
}

// Loads the given gradients of the spikes of up to kUnroll steps from `t`.
SJ_FN void fetch(const BackwardArguments& b, Long at, int t, Pack<Io> (&grads)[kUnroll]) {
  if constexpr (kSpikes) {
    const Long from = t * b.elements + at;
#pragma unroll
    for (int j = 0; j < kUnroll; ++j)
      if (t + j < b.steps) grads[j] = load(b.grad_spikes + from + j * b.elements);
  }
}

// Gradients of the elements at ..at + SJ_VEC; returns their part of dL/dq.
SJ_FN float unwind(const BackwardArguments& b, const Neuron& n, Long at) {
  const int last = (b.steps - 1) / SJ_CHUNK;
  Pack<float> v = initial(b.v0, b.v0_each, at);
  for (int chunk = 0; chunk < last; ++chunk) {
    advance(b, n, at, chunk * SJ_CHUNK, v, [](int, int, float, float, float) {});
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
    const int t = chunk * SJ_CHUNK;
    float charges[SJ_CHUNK][SJ_VEC], pulls[kPlif ? SJ_CHUNK : 1][SJ_VEC];
    Pack<Io> grads[kUnroll];
    fetch(b, at, t + SJ_CHUNK - kUnroll, grads);  // on their way while the potentials are computed
    advance(b, n, at, t, v, [&](int j, int e, float h, float input, float before) {
      charges[j][e] = h;
      if constexpr (kPlif) pulls[j][e] = sj::pull(input, before, n);
    });
#pragma unroll
    for (int first = SJ_CHUNK - kUnroll; first >= 0; first -= kUnroll) {
      const Long from = (t + first) * b.elements + at;
      if (first < SJ_CHUNK - kUnroll) fetch(b, at, t + first, grads);
#pragma unroll
      for (int j = kUnroll - 1; j >= 0; --j) {
        if (t + first + j >= b.steps) continue;
        const Long to = from + j * b.elements;
        if constexpr (kSequence) {
          const Pack<float> given = load(b.grad_v_seq + to);
#pragma unroll
          for (int e = 0; e < SJ_VEC; ++e) carry.at[e] += given.at[e];
        }
        Pack<Io> grad_x;
#pragma unroll
        for (int e = 0; e < SJ_VEC; ++e) {
          const float grad_s = kSpikes ? widen(grads[j].at[e]) : 0.0f;
          const auto g = sj::unwind(grad_s, carry.at[e], charges[first + j][e], n);
          narrow(g.x, grad_x.at[e]);
          carry.at[e] = g.carry;
          if constexpr (kPlif) grad_q += g.h * pulls[first + j][e];
        }
        store(b.grad_x + to, grad_x);
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
// V before each chunk of SJ_CHUNK steps comes from a first pass; within a chunk H stays in
// registers.
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

// One block: dw = q (1 - q) sum of dq.
extern "C" __global__ void __launch_bounds__(kThreads) sj_finish(const FinishArguments a) {
  double sum = 0.0;
  for (int i = threadIdx.x; i < a.blocks; i += kThreads) sum += a.grad_q[i];
  sum = total(sum);
  const double q = *a.q;
  if (threadIdx.x == 0) *a.grad_w = static_cast<float>(sum * (q * (1.0 - q)));
}
