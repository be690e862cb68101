// The CUDA engine: loops over one variant of step.h. Compiled by cupy_engine.py through NVRTC.
//
//   forward   x [T, N, C, M], v0 [N, C, M]  ->  spikes [T, N, C, M], v [N, C, M],
//             partials [N, C, K] (mean over time and map; the maximum over the map is that of the
//             time mean), and on request v_seq, h_seq, g_seq [T, N, C, M]
//   backward  gradients of spikes, v and v_seq -> gradients of x, v0 and (PLIF) of w;
//             H is recomputed from x and v0
//
// M is the size of the map; channels-last tensors are [T, N, M, C] in memory. x, spikes and their
// gradients are of the input's type SJ_TYPE; everything else and all arithmetic is float.
//
// One thread owns SJ_VEC neighboring elements over all T steps, so potentials live in registers and
// reach memory only where the caller asked for them. No atomics: sums are taken in an order that
// depends on shapes and device alone, so results repeat to the last bit.
//
// A variant is step.h's macros and
//   SJ_TYPE        float, Half or Bfloat16
//   SJ_VEC         elements a thread; it divides all sizes and alignments: there are no remainders
//   SJ_STORE       1: v_seq, 2: h_seq and g_seq (forward)
//   SJ_CHUNK       steps whose potentials the backward pass keeps in registers; 0 for the forward
//   SJ_GRADS       1: gradient of the spikes given, 2: of v_seq (backward)
#define SJ_DEVICE
#include "step.h"

using Long = long long;
using Neuron = sj::Neuron<float>;

// ---- types of input and output -----------------------------------------------------------------
// As bit patterns, without CUDA's headers, which NVRTC may not find on a user's machine.

struct Half {
  unsigned short bits;
};
struct Bfloat16 {
  unsigned short bits;
};

SJ_FN float widen(float x) { return x; }
SJ_FN float widen(Bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
SJ_FN void narrow(float x, float& out) { out = x; }

#ifdef __CUDACC__
SJ_FN float widen(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
SJ_FN void narrow(float x, Half& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
#else  // run on the host by the tests, which define these
float widen(Half x);
void narrow(float x, Half& out);
#endif

SJ_FN void narrow(float x, Bfloat16& out) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  // Round to nearest even; a nan stays one.
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<unsigned short>(x == x ? rounded : 0x7fffu);
#endif
}

using Io = SJ_TYPE;

// Stores of one word. As a plain assignment the compiler splits some of the wide ones (seen).
#ifdef __CUDACC__
SJ_FN void put(uint4* to, uint4 w) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.x), "r"(w.y), "r"(w.z),
               "r"(w.w)
               : "memory");
}
SJ_FN void put(uint2* to, uint2 w) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(w.x), "r"(w.y) : "memory");
}
#else
SJ_FN void put(uint4* to, uint4 word) { *to = word; }
SJ_FN void put(uint2* to, uint2 word) { *to = word; }
#endif
SJ_FN void put(unsigned* to, unsigned word) { *to = word; }
SJ_FN void put(unsigned short* to, unsigned short word) { *to = word; }

// SJ_VEC neighboring elements; they move in words of at most 16 bytes.
template <typename T>
struct Pack {
  T at[SJ_VEC];
};

template <int kBytes>
struct Words {
  using Word = uint4;
};
template <>
struct Words<8> {
  using Word = uint2;
};
template <>
struct Words<4> {
  using Word = unsigned;
};
template <>
struct Words<2> {
  using Word = unsigned short;
};

template <typename T>
SJ_FN Pack<T> load(const T* from) {
  using Word = typename Words<sizeof(Pack<T>)>::Word;
  constexpr int kWords = sizeof(Pack<T>) / sizeof(Word);
  Word words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Word*>(from)[i];
  Pack<T> pack;
  memcpy(&pack, words, sizeof pack);
  return pack;
}

template <typename T>
SJ_FN void store(T* to, const Pack<T>& pack) {
  using Word = typename Words<sizeof(Pack<T>)>::Word;
  constexpr int kWords = sizeof(Pack<T>) / sizeof(Word);
  Word words[kWords];
  memcpy(words, &pack, sizeof pack);
#pragma unroll
  for (int i = 0; i < kWords; ++i) put(reinterpret_cast<Word*>(to) + i, words[i]);
}

// Initial potentials of the elements at ..at + SJ_VEC; where `each` is 0, all are one number.
SJ_FN Pack<float> initial(const float* v0, int each, Long at) {
  if (each) return load(v0 + at);
  Pack<float> v;
#pragma unroll
  for (int e = 0; e < SJ_VEC; ++e) v.at[e] = *v0;
  return v;
}

constexpr int kWarp = 32;

#if SJ_CHUNK == 0
// ================================================================================================
// Forward
// ================================================================================================

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // loads in flight a thread
// Blocks a multiprocessor must hold. Left to choose, the assembler spills a few registers of some
// variants to fit one block more (seen).
// Threads that record and store all want a register or two more than three blocks leave.
constexpr int kBlocksOfRows = SJ_VEC >= 4 && SJ_STORE == 3 && SJ_NAMES > 3 ? 2 : 3;
constexpr int kBlocksOfColumns = 2;

using sj::is_maximum;
using sj::kNames;
using sj::kRows;
using sj::kSums;
using sj::sum_of;

// The sums of which a maximum is wanted, as bits: each element has its own.
SJ_FN constexpr int sums_of_maxima() {
  int found = 0;
  for (int k = 0; k < kNames; ++k) found |= is_maximum(k) << sum_of(k);
  return found;
}
constexpr int kOwn = sums_of_maxima();
constexpr bool kStoreV = SJ_STORE & 1, kTrace = SJ_STORE & 2;

// K statistics over time (and over the map), for E channels.
template <int E>
using Sums = float[kRows][E];

SJ_FN float combine(int k, float a, float b) { return is_maximum(k) ? sj::larger(a, b) : a + b; }

struct ForwardArguments {  // its mirror: ForwardArguments in launch.py
  const Io* x;
  const float* v0;
  const float* q;  // PLIF's sigmoid(w)
  Io* spikes;
  float* v;
  float* partials;  // [splits, N, C, K]
  float* v_seq;
  float* h_seq;
  float* g_seq;
  Long stride;             // elements of one step, N C M
  Long units;              // rows N C, or samples N where channels are last
  Long channels;           // C where channels are last
  Long map;                // M
  int steps;               // T
  int log_lanes;           // log2 of the threads along the map
  int log_columns;         // log2 of the threads along the channels, where these are last
  int v0_each;             // 0 where v0 is one number
  float threshold, reset, decay, alpha;
};

// All steps of the elements at ..at + SJ_VEC; these belong to one channel (E = 1) or to E of them.
template <int E>
SJ_FN void run(const ForwardArguments& f, const Neuron& n, Long at, Sums<E>& sums) {
  Pack<float> v = initial(f.v0, f.v0_each, at);
  float own[kRows][SJ_VEC];
#pragma unroll
  for (int j = 0; j < kSums; ++j)
#pragma unroll
    for (int e = 0; e < SJ_VEC; ++e) own[j][e] = 0.0f;
  Long from = at;
  for (int t = 0; t < f.steps; t += kUnroll, from += kUnroll * f.stride) {
    Pack<Io> x[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j)
      if (t + j < f.steps) x[j] = load(f.x + from + j * f.stride);
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      if (t + j >= f.steps) break;
      const Long to = from + j * f.stride;
      Pack<Io> spikes;
      Pack<float> charges, derivatives;
#pragma unroll
      for (int e = 0; e < SJ_VEC; ++e) {
        const float h = sj::charge(widen(x[j].at[e]), v.at[e], n);
        const float s = sj::fire(h, n);
        v.at[e] = sj::settle(h, s, n);
        narrow(s, spikes.at[e]);
        const float g = sj::derivative(h - n.threshold, n);
        charges.at[e] = h;
        derivatives.at[e] = g;
        float value[kRows];
        sj::quantities(value, s, v.at[e], h, g);
#pragma unroll
        for (int j = 0; j < kSums; ++j)
          if (kOwn >> j & 1) own[j][e] += value[j];
#pragma unroll
        for (int k = 0; k < kNames; ++k)
          if (!(kOwn >> sum_of(k) & 1)) sums[k][E == 1 ? 0 : e] += value[sum_of(k)];
      }
      store(f.spikes + to, spikes);
      if constexpr (kStoreV) store(f.v_seq + to, v);
      if constexpr (kTrace) {
        store(f.h_seq + to, charges);
        store(f.g_seq + to, derivatives);
      }
    }
  }
  store(f.v + at, v);
#pragma unroll
  for (int k = 0; k < kNames; ++k)
    if (kOwn >> sum_of(k) & 1)
#pragma unroll
      for (int e = 0; e < SJ_VEC; ++e) {
        float& sum = sums[k][E == 1 ? 0 : e];
        sum = combine(k, sum, own[sum_of(k)][e]);
      }
}

template <int E>
SJ_FN void clear(Sums<E>& sums) {
#pragma unroll
  for (int k = 0; k < kNames; ++k)
#pragma unroll
    for (int e = 0; e < E; ++e) sums[k][e] = is_maximum(k) ? -__uint_as_float(0x7f800000u) : 0.0f;
}

// Joins the sums of the `1 << log_lanes` threads that lie `1 << log_columns` apart, within a warp
// by shuffles and then across warps; the result is in the thread with `lane` 0.
template <int E>
SJ_FN void reduce(Sums<E>& sums, int log_columns, int log_lanes, int lane) {
  const int width = 1 << (log_columns + log_lanes);
  for (int offset = 1 << log_columns; offset < width && offset < kWarp; offset <<= 1)
#pragma unroll
    for (int k = 0; k < kNames; ++k)
#pragma unroll
      for (int e = 0; e < E; ++e)
        sums[k][e] = combine(k, sums[k][e], __shfl_xor_sync(0xffffffffu, sums[k][e], offset));
  if (width <= kWarp || log_lanes == 0) return;
  const int step = log_columns > 5 ? 1 << log_columns : kWarp;
  // At most 8 KB, in several rounds where there are many sums.
  constexpr int kRound = E >= 8 ? 1 : 8 / E;
  __shared__ float shared[kRound * E][kThreads];
  const int thread = threadIdx.x;
#pragma unroll
  for (int first = 0; first < kNames; first += kRound) {
#pragma unroll
    for (int k = first; k < kNames && k < first + kRound; ++k)
#pragma unroll
      for (int e = 0; e < E; ++e) shared[(k - first) * E + e][thread] = sums[k][e];
    __syncthreads();
    if (lane == 0)
      for (int other = step; other < width; other += step)
#pragma unroll
        for (int k = first; k < kNames && k < first + kRound; ++k)
#pragma unroll
          for (int e = 0; e < E; ++e)
            sums[k][e] = combine(k, sums[k][e], shared[(k - first) * E + e][thread + other]);
    __syncthreads();
  }
}

// Writes the K means of channel `e` of `sums`.
template <int E>
SJ_FN void write(const ForwardArguments& f, Long channel, const Sums<E>& sums, int e) {
  const float per_step = 1.0f / static_cast<float>(f.steps);
  const float per_element = 1.0f / static_cast<float>(f.steps * f.map);
#pragma unroll
  for (int k = 0; k < kNames; ++k)
    f.partials[channel * kNames + k] = sums[k][e] * (is_maximum(k) ? per_step : per_element);
}

SJ_FN Neuron neuron(const ForwardArguments& f) {
  return {f.threshold, f.reset, SJ_KIND == 2 ? *f.q : f.decay, f.alpha};
}

// Channels first: a group of `lanes` threads a row (n, c) of M elements, 256 / lanes rows a block.
// The map may be split over gridDim.y blocks.
//   charge  H[t] = V[t-1] + x[t] (IF), or with leakage (step.h)
//   fire    S[t] = [H[t] >= V_threshold]
//   reset   V[t] = S V_reset + (1 - S) H (hard) or H - S V_threshold (soft)
// partials[n, c] = (1 / T M) sum over t, m of S, |V|, |H|, g'(H - V_threshold), and
// max over m of (1 / T) sum over t of g'.
extern "C" __global__ void __launch_bounds__(kThreads, kBlocksOfRows)
    sj_rows(const ForwardArguments f) {
  const Neuron n = neuron(f);
  const int lane = threadIdx.x & ((1 << f.log_lanes) - 1);
  const Long row = (static_cast<Long>(blockIdx.x) * kThreads + threadIdx.x) >> f.log_lanes;
  Sums<1> sums;
  clear<1>(sums);
  if (row < f.units) {
    const Long stride = static_cast<Long>(gridDim.y) * SJ_VEC << f.log_lanes;
    const Long first = ((static_cast<Long>(blockIdx.y) << f.log_lanes) + lane) * SJ_VEC;
    for (Long m = first; m < f.map; m += stride) run<1>(f, n, row * f.map + m, sums);
  }
  if constexpr (kNames > 0) {
    reduce<1>(sums, 0, f.log_lanes, lane);
    if (lane == 0 && row < f.units) write<1>(f, blockIdx.y * f.units + row, sums, 0);
  }
}

// Channels last: the same recurrence and sums with [T, N, M, C] in memory. A block is `columns`
// threads of SJ_VEC channels each x `lanes` along the map x as many samples as fit in 256 threads.
extern "C" __global__ void __launch_bounds__(kThreads, kBlocksOfColumns)
    sj_columns(const ForwardArguments f) {
  const Neuron n = neuron(f);
  const int column = threadIdx.x & ((1 << f.log_columns) - 1);
  const int lane = (threadIdx.x >> f.log_columns) & ((1 << f.log_lanes) - 1);
  const int log_width = f.log_columns + f.log_lanes;
  const Long tile = static_cast<Long>(SJ_VEC) << f.log_columns;
  const unsigned tiles = static_cast<unsigned>((f.channels + tile - 1) / tile);
  const Long group = blockIdx.x / tiles;
  const Long sample = group * (kThreads >> log_width) + (threadIdx.x >> log_width);
  const Long channel = (blockIdx.x % tiles) * tile + column * SJ_VEC;
  const bool inside = sample < f.units && channel < f.channels;
  Sums<SJ_VEC> sums;
  clear<SJ_VEC>(sums);
  if (inside) {
    const Long stride = static_cast<Long>(gridDim.y) << f.log_lanes;
    for (Long m = (static_cast<Long>(blockIdx.y) << f.log_lanes) + lane; m < f.map; m += stride)
      run<SJ_VEC>(f, n, (sample * f.map + m) * f.channels + channel, sums);
  }
  if constexpr (kNames > 0) {
    reduce<SJ_VEC>(sums, f.log_columns, f.log_lanes, lane);
    if (lane == 0 && inside) {
      const Long to = (blockIdx.y * f.units + sample) * f.channels + channel;
#pragma unroll
      for (int e = 0; e < SJ_VEC; ++e) write<SJ_VEC>(f, to + e, sums, e);
    }
  }
}

struct MergeArguments {
  const float* scratch;  // [splits, N, C, K]
  float* partials;       // [N, C, K]
  Long count;            // N C K
  int splits;
};

// Joins the splits of a map in their order.
extern "C" __global__ void __launch_bounds__(kThreads) sj_merge(const MergeArguments a) {
  if constexpr (kNames > 0) {
    const Long i = static_cast<Long>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= a.count) return;
    const int k = static_cast<int>(i % kNames);
    float value = a.scratch[i];
    for (int split = 1; split < a.splits; ++split)
      value = combine(k, value, a.scratch[split * a.count + i]);
    a.partials[i] = value;
  }
}

#else
// ================================================================================================
// Backward
// ================================================================================================

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
#endif
