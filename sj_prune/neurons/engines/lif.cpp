// The CPU engine: loops over one variant of step.h. Built by cpp_engine.py, called through ctypes.
//
//   forward   x [T, N, C, M], v0 [N, C, M]  ->  spikes [T, N, C, M], v [N, C, M],
//             partials [N, C, K] (mean over time and map; the maximum over the map is that of the
//             time mean), and on request v_seq, h_seq, g_seq [T, N, C, M]
//   backward  gradients of spikes, v and v_seq -> gradients of x, v0 and (PLIF) of q;
//             H is recomputed from x and v0
//
// M is the size of the map. Channels-last tensors are [T, N, M, C] in memory. A tile of neighboring
// elements stays in the L1 cache over all T steps, so the potentials never reach memory. Each
// (sample, channel) belongs to one thread and is summed in a fixed order: results do not depend on
// the number of threads.
#include <algorithm>
#include <vector>

#include "step.h"

#ifndef SJ_STATISTICS  // bits in the order of STATISTICS in activity.py
#define SJ_STATISTICS 0
#endif
#ifndef SJ_TYPE
#define SJ_TYPE float
#endif

using A = SJ_TYPE;
using std::int64_t;

namespace {

constexpr int kTile = 256;
constexpr bool kRate = SJ_STATISTICS & 1, kPotential = SJ_STATISTICS & 2;
constexpr bool kCharge = SJ_STATISTICS & 4, kMean = SJ_STATISTICS & 8, kMax = SJ_STATISTICS & 16;
constexpr bool kDerivative = kMean || kMax;
constexpr int kNames = kRate + kPotential + kCharge + kMean + kMax;

// Sums over time for the elements of a tile, or over time and map for a tile of channels.
struct Sums {
  A rate[kTile], potential[kTile], charge[kTile], mean[kTile], max[kTile];
};

inline void add(A* __restrict sums, const A* __restrict values, int count) {
#pragma omp simd
  for (int i = 0; i < count; ++i) sums[i] += values[i];
}

inline void add_magnitude(A* __restrict sums, const A* __restrict values, int count) {
#pragma omp simd
  for (int i = 0; i < count; ++i) sums[i] += sj::absolute(values[i]);
}

struct Forward {
  const A* x;
  const A* v0;
  A* spikes;
  A* v;
  A* v_seq;  // null unless wanted, as the next two
  A* h_seq;
  A* g_seq;
  int64_t steps, stride;
  int64_t v0_stride;  // 1, or 0 where all potentials start at v0[0]
  sj::Neuron<A> neuron;

  // Runs all steps of `count` elements from `at`; adds their time sums to `sums` and raises
  // sums.max to that of g'.
  template <bool kSequences>
  void tile(int64_t at, int count, Sums& sums) const {
    // Copies that no store can alias, and loops that do one thing: then compilers vectorize.
    const sj::Neuron<A> n = neuron;
    A v_now[kTile], h[kTile], g_sum[kTile];
    A* __restrict const rate = sums.rate;
    A* __restrict const potential = sums.potential;
    A* __restrict const charge = sums.charge;
    for (int i = 0; i < count; ++i) v_now[i] = v0[v0_stride * (at + i)];
    if (kDerivative) std::fill(g_sum, g_sum + count, A(0));
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t from = t * stride + at;
      const A* __restrict const xt = x + from;
      A* __restrict const st = spikes + from;
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        const A charged = sj::charge(xt[i], v_now[i], n);
        const A s = sj::fire(charged, n);
        const A left = sj::settle(charged, s, n);
        st[i] = s;
        v_now[i] = left;
        if (kRate) rate[i] += s;
        if (kPotential) potential[i] += sj::absolute(left);
        if (kCharge) charge[i] += sj::absolute(charged);
        if (kDerivative) g_sum[i] += sj::derivative(charged - n.threshold, n);
        if (kSequences) h[i] = charged;
      }
      if (kSequences) {
        if (v_seq) std::copy(v_now, v_now + count, v_seq + from);
        if (h_seq) std::copy(h, h + count, h_seq + from);
        if (g_seq) {
#pragma omp simd
          for (int i = 0; i < count; ++i) g_seq[from + i] = sj::derivative(h[i] - n.threshold, n);
        }
      }
    }
    for (int i = 0; i < count; ++i) v[at + i] = v_now[i];
    if (kDerivative) {
#pragma omp simd
      for (int i = 0; i < count; ++i) {
        sums.mean[i] += g_sum[i];
        sums.max[i] = sums.max[i] > g_sum[i] ? sums.max[i] : g_sum[i];
      }
    }
  }

  void run(int64_t at, int count, Sums& sums) const {
    if (v_seq || h_seq)
      tile<true>(at, count, sums);
    else
      tile<false>(at, count, sums);
  }
};

void clear(Sums& sums, int count) {
  if (kRate) std::fill(sums.rate, sums.rate + count, A(0));
  if (kPotential) std::fill(sums.potential, sums.potential + count, A(0));
  if (kCharge) std::fill(sums.charge, sums.charge + count, A(0));
  if (kDerivative) {
    std::fill(sums.mean, sums.mean + count, A(0));
    std::fill(sums.max, sums.max + count, A(0));  // g' >= 0 for every surrogate of the table
  }
}

A total(const A* values, int count) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < count; ++i) sum += values[i];
  return sum;
}

A largest(const A* values, int count) {
  A best = values[0];
#pragma omp simd reduction(max : best)
  for (int i = 0; i < count; ++i) best = values[i] > best ? values[i] : best;
  return best;
}

// Writes the means of one channel; `rate` ... are its sums over time and map.
void write(A* out, A rate, A potential, A charge, A mean, A max, A steps, A elements) {
  int k = 0;
  if (kRate) out[k++] = rate / elements;
  if (kPotential) out[k++] = potential / elements;
  if (kCharge) out[k++] = charge / elements;
  if (kMean) out[k++] = mean / elements;
  if (kMax) out[k++] = max / steps;
}

// Channels first, a map of at least one tile: one channel, tile by tile.
void channel(const Forward& f, int64_t row, int64_t map, A* partials) {
  Sums sums;
  clear(sums, kTile);
  for (int64_t m = 0; m < map; m += kTile)
    f.run(row * map + m, int(std::min<int64_t>(kTile, map - m)), sums);
  if (!kNames) return;
  write(partials + row * kNames, total(sums.rate, kTile), total(sums.potential, kTile),
        total(sums.charge, kTile), total(sums.mean, kTile), largest(sums.max, kTile),
        A(f.steps), A(f.steps * map));
}

// Channels first, a small map: several whole channels in one tile.
void channels(const Forward& f, int64_t row, int count, int64_t map, A* partials) {
  Sums sums;
  const int elements = int(count * map);
  clear(sums, elements);
  f.run(row * map, elements, sums);
  if (!kNames) return;
  for (int c = 0; c < count; ++c) {
    const int at = int(c * map), n = int(map);
    write(partials + (row + c) * kNames, total(sums.rate + at, n), total(sums.potential + at, n),
          total(sums.charge + at, n), total(sums.mean + at, n),
          largest(sums.max + at, n), A(f.steps), A(f.steps * map));
  }
}

// Channels last: a tile of channels, over the whole map.
void columns(const Forward& f, int64_t sample, int64_t first, int count, int64_t channels,
             int64_t map, A* partials) {
  Sums sums;
  clear(sums, count);
  for (int64_t m = 0; m < map; ++m)
    f.run((sample * map + m) * channels + first, count, sums);
  if (!kNames) return;
  for (int i = 0; i < count; ++i)
    write(partials + (sample * channels + first + i) * kNames, sums.rate[i], sums.potential[i],
          sums.charge[i], sums.mean[i], sums.max[i], A(f.steps), A(f.steps * map));
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

extern "C" void sj_forward(const A* x, const A* v0, A* spikes, A* v, A* partials, A* v_seq,
                           A* h_seq, A* g_seq, int64_t steps, int64_t samples, int64_t count,
                           int64_t map, int64_t v0_stride, int channels_last, double threshold,
                           double reset, double decay, double alpha, int threads) {
  const Forward f{x,     v0,    spikes,
                  v,     v_seq, h_seq,
                  g_seq, steps, samples * count * map,
                  v0_stride, {A(threshold), A(reset), A(decay), A(alpha)}};
  if (channels_last || map == 1) {
    const int64_t tiles = divide_up(count, kTile);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < samples * tiles; ++unit) {
      const int64_t first = unit % tiles * kTile;
      columns(f, unit / tiles, first, int(std::min<int64_t>(kTile, count - first)), count, map,
              partials);
    }
  } else if (map >= kTile) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < samples * count; ++row) channel(f, row, map, partials);
  } else {
    const int64_t rows = samples * count, group = kTile / map;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < divide_up(rows, group); ++unit)
      channels(f, unit * group, int(std::min(group, rows - unit * group)), map, partials);
  }
}

// Any dense layout that all tensors share; `grad_s`, `grad_v`, `grad_v_seq` may be null, `grad_v0`
// is null where nobody asks for it. `grad_q`
// has one entry a unit of kTile elements, to be summed by the caller in that order.
extern "C" void sj_backward(const A* grad_s, const A* grad_v, const A* grad_v_seq, const A* x,
                            const A* v0, A* grad_x, A* grad_v0, double* grad_q, int64_t steps,
                            int64_t elements, int64_t v0_stride, double threshold, double reset,
                            double decay, double alpha, int threads) {
  const sj::Neuron<A> n{A(threshold), A(reset), A(decay), A(alpha)};
  const int64_t units = divide_up(elements, kTile);
#pragma omp parallel num_threads(threads)
  {
    std::vector<A> scratch(size_t(steps) * kTile * (SJ_KIND == 2 ? 2 : 1));
    A* const hs = scratch.data();
    A* const vs = hs + (SJ_KIND == 2 ? steps * kTile : 0);
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t at = unit * kTile;
      const int count = int(std::min<int64_t>(kTile, elements - at));
      A v[kTile], carry[kTile], dq[kTile];
      for (int i = 0; i < count; ++i) v[i] = v0[v0_stride * (at + i)];
      for (int64_t t = 0; t < steps; ++t) {
        const A* xt = x + t * elements + at;
        A* ht = hs + t * kTile;
#pragma omp simd
        for (int i = 0; i < count; ++i) {
          if (SJ_KIND == 2) vs[t * kTile + i] = v[i];
          const A h = sj::charge(xt[i], v[i], n);
          ht[i] = h;
          v[i] = sj::settle(h, sj::fire(h, n), n);
        }
      }
      for (int i = 0; i < count; ++i) carry[i] = grad_v ? grad_v[at + i] : A(0);
      for (int i = 0; i < count; ++i) dq[i] = A(0);
      for (int64_t t = steps - 1; t >= 0; --t) {
        const int64_t from = t * elements + at;
        const A* ht = hs + t * kTile;
        if (grad_v_seq)
          for (int i = 0; i < count; ++i) carry[i] += grad_v_seq[from + i];
        const A* gs = grad_s + from;
        A* gx = grad_x + from;
        if (grad_s) {
#pragma omp simd
          for (int i = 0; i < count; ++i) {
            const auto g = sj::unwind(gs[i], carry[i], ht[i], n);
            gx[i] = g.x;
            carry[i] = g.carry;
            if (SJ_KIND == 2) dq[i] += g.h * sj::pull(x[from + i], vs[t * kTile + i], n);
          }
        } else {
#pragma omp simd
          for (int i = 0; i < count; ++i) {
            const auto g = sj::unwind(A(0), carry[i], ht[i], n);
            gx[i] = g.x;
            carry[i] = g.carry;
            if (SJ_KIND == 2) dq[i] += g.h * sj::pull(x[from + i], vs[t * kTile + i], n);
          }
        }
      }
      if (grad_v0)
        for (int i = 0; i < count; ++i) grad_v0[at + i] = carry[i];
      if (SJ_KIND == 2) {
        double sum = 0;
        for (int i = 0; i < count; ++i) sum += double(dq[i]);
        grad_q[unit] = sum;
      }
    }
  }
}

extern "C" int64_t sj_tile() { return kTile; }
