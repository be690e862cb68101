// The forward pass of the CUDA engine.
#pragma once

#include "cuda_words.h"

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
  Long map;                // M, or where M is 1 and samples are summed: samples a row
  Long positions;          // elements of all maps where channels are last
  int steps;               // T
  int group;               // rows a block, where it has several
  int log_lanes;           // log2 of the threads along the map, or that join one row of a group
  int log_columns;         // log2 of the threads along the channels, where these are last
  int v0_each;             // 0 where v0 is one number
  float per_element;       // 1 / (T M)
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

// What changes nothing when it is combined: 0 or minus infinity.
SJ_FN float neutral(int k) { return is_maximum(k) ? -__uint_as_float(0x7f800000u) : 0.0f; }

template <int E>
SJ_FN void clear(Sums<E>& sums) {
#pragma unroll
  for (int k = 0; k < kNames; ++k)
#pragma unroll
    for (int e = 0; e < E; ++e) sums[k][e] = neutral(k);
}

// Joins the sums of threads `step`, 2 `step`, ... apart, up to `width` and within a warp.
template <int E>
SJ_FN void reduce_in_warp(Sums<E>& sums, int step, int width) {
  for (int offset = step; offset < width && offset < kWarp; offset <<= 1)
#pragma unroll
    for (int k = 0; k < kNames; ++k)
#pragma unroll
      for (int e = 0; e < E; ++e)
        sums[k][e] = combine(k, sums[k][e], __shfl_xor_sync(0xffffffffu, sums[k][e], offset));
}

// Joins the sums of the `1 << log_lanes` threads that lie `1 << log_columns` apart, within a warp
// by shuffles and then across warps; the result is in the thread with `lane` 0.
template <int E>
SJ_FN void reduce(Sums<E>& sums, int log_columns, int log_lanes, int lane) {
  const int width = 1 << (log_columns + log_lanes);
  reduce_in_warp<E>(sums, 1 << log_columns, width);
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
#pragma unroll
  for (int k = 0; k < kNames; ++k)
    f.partials[channel * kNames + k] = sums[k][e] * (is_maximum(k) ? per_step : f.per_element);
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

// Channels first, small and odd maps: a block owns `group` whole rows, whose elements lie side by
// side, and a thread SJ_VEC of these, which may be of two rows. So accesses are whole words and no
// thread idles, whatever the map. Sums over time of both parts meet in shared memory, where
// `1 << log_lanes` threads join those of one row.
extern "C" __global__ void __launch_bounds__(kThreads, kBlocksOfColumns)
    sj_groups(const ForwardArguments f) {
  if constexpr (kNames > 0) {
    __shared__ float parts[kRows][2][kThreads];
    const Neuron n = neuron(f);
    const int thread = threadIdx.x, threads = blockDim.x, map = static_cast<int>(f.map);
    const Long begin = static_cast<Long>(blockIdx.x) * f.group;
    const int rows = f.units - begin < f.group ? static_cast<int>(f.units - begin) : f.group;
    const int packs = rows * map / SJ_VEC, row = thread >> f.log_lanes;
    const int start = row * map, end = (start + map - 1) / SJ_VEC + 1;
    Sums<1> found;
    clear<1>(found);
    for (int first = 0; first < packs; first += threads) {
      const int pack = first + thread;
      Sums<SJ_VEC> sums;
      clear<SJ_VEC>(sums);
      if (pack < packs) run<SJ_VEC>(f, n, begin * map + pack * SJ_VEC, sums);
      const int left = map - pack * SJ_VEC % map;  // elements from here to the end of the row
#pragma unroll
      for (int k = 0; k < kNames; ++k) {
        float here = sums[k][0], next = neutral(k);
#pragma unroll
        for (int e = 1; e < SJ_VEC; ++e) {
          const float more = sums[k][e];
          here = e < left ? combine(k, here, more) : here;
          next = e < left ? next : combine(k, next, more);
        }
        parts[k][0][thread] = here;
        parts[k][1][thread] = next;
      }
      __syncthreads();
      const int lane = thread & ((1 << f.log_lanes) - 1);
      const int from = start / SJ_VEC > first ? start / SJ_VEC : first;
      const int to = end < first + threads ? end : first + threads;
      for (int i = from + lane; row < rows && i < to; i += 1 << f.log_lanes)
#pragma unroll
        for (int k = 0; k < kNames; ++k)
          found[k][0] = combine(k, found[k][0], parts[k][i * SJ_VEC < start][i - first]);
      __syncthreads();
    }
    reduce_in_warp<1>(found, 1, 1 << f.log_lanes);
    if ((thread & ((1 << f.log_lanes) - 1)) == 0 && row < rows) write<1>(f, begin + row, found, 0);
  }
}

// Channels last: the same recurrence and sums with [T, N, M, C] in memory. A block is `columns`
// threads of SJ_VEC channels each x `lanes` along the map x as many samples as fit in 256 threads.
// Samples of one element a channel may stand for a map, and some of them for one sample: then
// partials are sums over these, of which no maximum is asked.
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
    const Long left = f.positions - sample * f.map, end = left < f.map ? left : f.map;
    for (Long m = (static_cast<Long>(blockIdx.y) << f.log_lanes) + lane; m < end; m += stride)
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
