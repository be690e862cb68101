// The CPU engine: loops over one variant of step.h. Built by cpp_engine.py, called through ctypes.
//
//   forward   x [T, N, C, M], v0 [N, C, M]  ->  spikes [T, N, C, M], v [N, C, M],
//             partials [N, C, K] (mean over time and map; the maximum over the map is that of the
//             time mean), and on request v_seq, h_seq, g_seq [T, N, C, M]
//   backward  gradients of spikes, v and v_seq -> gradients of x, v0 and (PLIF) of q;
//             H is recomputed from x and v0
//
// M is the size of the map. Channels-last tensors are [T, N, M, C] in memory. As many neighboring
// elements as fill a vector register (a block) go through all T steps at once: their potentials and
// sums stay in registers. Each (sample, channel) belongs to one thread and is summed in a fixed
// order: results do not depend on the number of threads.
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

using V = sj::Lanes<A>;
constexpr int kLanes = V::kCount;
constexpr int kWidth = 4;   // blocks side by side
constexpr int kTile = 256;  // elements summed in the type of the computation
constexpr bool kRate = SJ_STATISTICS & 1, kPotential = SJ_STATISTICS & 2;
constexpr bool kCharge = SJ_STATISTICS & 4, kMean = SJ_STATISTICS & 8, kMax = SJ_STATISTICS & 16;
constexpr bool kDerivative = kMean || kMax;
constexpr int kNames = kRate + kPotential + kCharge + kMean + kMax;

// A block at `p`, or what is left of one: `count` elements and zeros.
template <bool kWhole>
SJ_FN V get(const A* p, int count) {
  return kWhole ? V::load(p) : V::load(p, count);
}

template <bool kWhole>
SJ_FN void put(A* p, int count, V value) {
  if (kWhole)
    value.store(p);
  else
    value.store(p, count);
}

// Sums over time of one block; `derivative` is that of g'.
struct Block {
  V rate = 0, potential = 0, charge = 0, derivative = 0;
};

// Sums over time for the elements of a tile, or over time and map for a tile of channels.
struct Sums {
  A rate[kTile + kLanes], potential[kTile + kLanes], charge[kTile + kLanes];
  A mean[kTile + kLanes], max[kTile + kLanes];  // a block may end beyond the tile: never read

  void clear(int count) {
    count += kLanes;
    if (kRate) std::fill(rate, rate + count, A(0));
    if (kPotential) std::fill(potential, potential + count, A(0));
    if (kCharge) std::fill(charge, charge + count, A(0));
    if (kDerivative) {
      std::fill(mean, mean + count, A(0));
      std::fill(max, max + count, A(0));  // g' >= 0 for every surrogate of the table
    }
  }

  SJ_MEMBER void add(int at, const Block& block) {
    if (kRate) (V::load(rate + at) + block.rate).store(rate + at);
    if (kPotential) (V::load(potential + at) + block.potential).store(potential + at);
    if (kCharge) (V::load(charge + at) + block.charge).store(charge + at);
    if (kMean) (V::load(mean + at) + block.derivative).store(mean + at);
    if (kMax) {
      const V before = V::load(max + at);
      sj::select(before > block.derivative, before, block.derivative).store(max + at);
    }
  }
};

// Sums over time and map of one channel.
struct Channel {
  double rate = 0, potential = 0, charge = 0, mean = 0, max = 0;

  // Writes the means: the sums divided by the number of steps and elements of the map.
  void write(A* out, double steps, double map) const {
    const double per_step = 1.0 / steps, per_element = 1.0 / (steps * map);
    int k = 0;
    if (kRate) out[k++] = A(rate * per_element);
    if (kPotential) out[k++] = A(potential * per_element);
    if (kCharge) out[k++] = A(charge * per_element);
    if (kMean) out[k++] = A(mean * per_element);
    if (kMax) out[k++] = A(max * per_step);
  }
};

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
  sj::Neuron<V> neuron;

  // All steps of kWide blocks from `at`, or of the first `count` elements of one. Blocks side by
  // side keep the processor busy while each waits for its previous step.
  template <bool kSequences, bool kWhole, int kWide>
  SJ_MEMBER void blocks(int64_t at, int count, Block (&sums)[kWide]) const {
    const sj::Neuron<V> n = neuron;
    V now[kWide];
    for (int k = 0; k < kWide; ++k)
      now[k] = v0_stride ? get<kWhole>(v0 + at + k * kLanes, count) : V(v0[0]);
    int64_t from = at;
    for (int64_t t = 0; t < steps; ++t, from += stride) {
#pragma GCC unroll 8
      for (int k = 0; k < kWide; ++k) {
        const int64_t here = from + k * kLanes;
        const V h = sj::charge(get<kWhole>(x + here, count), now[k], n);
        const V s = sj::fire(h, n);
        now[k] = sj::settle(h, s, n);
        put<kWhole>(spikes + here, count, s);
        if (kRate) sums[k].rate += s;
        if (kPotential) sums[k].potential += sj::absolute(now[k]);
        if (kCharge) sums[k].charge += sj::absolute(h);
        if (kDerivative) sums[k].derivative += sj::derivative(h - n.threshold, n);
        if (kSequences) {
          if (v_seq) put<kWhole>(v_seq + here, count, now[k]);
          if (h_seq) put<kWhole>(h_seq + here, count, h);
          if (g_seq) put<kWhole>(g_seq + here, count, sj::derivative(h - n.threshold, n));
        }
      }
    }
    for (int k = 0; k < kWide; ++k) put<kWhole>(v + at + k * kLanes, count, now[k]);
  }

  template <bool kSequences, bool kWhole>
  SJ_MEMBER Block block(int64_t at, int count) const {
    Block sums[1];
    blocks<kSequences, kWhole, 1>(at, count, sums);
    return sums[0];
  }

  // `count` elements from `at`, element by element into `sums`.
  template <bool kSequences>
  void tile(int64_t at, int count, Sums& sums) const {
    int i = 0;
    for (; i + kWidth * kLanes <= count; i += kWidth * kLanes) {
      Block found[kWidth];
      blocks<kSequences, true, kWidth>(at + i, kLanes, found);
      for (int k = 0; k < kWidth; ++k) sums.add(i + k * kLanes, found[k]);
    }
    for (; i + kLanes <= count; i += kLanes) sums.add(i, block<kSequences, true>(at + i, kLanes));
    if (i < count) sums.add(i, block<kSequences, false>(at + i, count - i));
  }

  // `count` elements from `at` of one channel.
  template <bool kSequences>
  void tile(int64_t at, int count, Channel& channel) const {
    Block all;
    V max = 0;
    int i = 0;
    auto take = [&](const Block& one) {
      all.rate += one.rate;
      all.potential += one.potential;
      all.charge += one.charge;
      all.derivative += one.derivative;
      max = sj::select(max > one.derivative, max, one.derivative);
    };
    for (; i + kWidth * kLanes <= count; i += kWidth * kLanes) {
      Block sums[kWidth];
      blocks<kSequences, true, kWidth>(at + i, kLanes, sums);
      for (const Block& one : sums) take(one);
    }
    for (; i + kLanes <= count; i += kLanes) take(block<kSequences, true>(at + i, kLanes));
    if (kRate) channel.rate += sj::total(all.rate);
    if (kPotential) channel.potential += sj::total(all.potential);
    if (kCharge) channel.charge += sj::total(all.charge);
    if (kMean) channel.mean += sj::total(all.derivative);
    if (kMax) channel.max = std::max(channel.max, double(sj::largest(max)));
    if (i < count) rest<kSequences>(at + i, count - i, channel);
  }

  template <bool kSequences>
  void rest(int64_t at, int count, Channel& channel) const {
    Sums sums;
    sums.clear(0);
    sums.add(0, block<kSequences, false>(at, count));
    for (int i = 0; i < count; ++i) {
      if (kRate) channel.rate += sums.rate[i];
      if (kPotential) channel.potential += sums.potential[i];
      if (kCharge) channel.charge += sums.charge[i];
      if (kMean) channel.mean += sums.mean[i];
      if (kMax) channel.max = std::max(channel.max, double(sums.max[i]));
    }
  }

  template <typename Into>
  void run(int64_t at, int count, Into& sums) const {
    if (v_seq || h_seq)
      tile<true>(at, count, sums);
    else
      tile<false>(at, count, sums);
  }
};

// Channels first, a map that blocks divide or a large one: one channel, tile by tile.
void one_channel(const Forward& f, int64_t row, int64_t map, A* partials) {
  Channel channel;
  for (int64_t m = 0; m < map; m += kTile)
    f.run(row * map + m, int(std::min<int64_t>(kTile, map - m)), channel);
  channel.write(partials + row * kNames, double(f.steps), double(map));
}

// Channels first, a small map: several whole channels in one tile.
void some_channels(const Forward& f, int64_t row, int count, int64_t map, A* partials) {
  Sums sums;
  const int elements = int(count * map);
  sums.clear(elements);
  f.run(row * map, elements, sums);
  for (int c = 0; c < count; ++c) {
    Channel channel;
    for (int i = int(c * map); i < int((c + 1) * map); ++i) {
      if (kRate) channel.rate += sums.rate[i];
      if (kPotential) channel.potential += sums.potential[i];
      if (kCharge) channel.charge += sums.charge[i];
      if (kMean) channel.mean += sums.mean[i];
      if (kMax) channel.max = std::max(channel.max, double(sums.max[i]));
    }
    channel.write(partials + (row + c) * kNames, double(f.steps), double(map));
  }
}

// Channels last: a tile of channels, over the whole map.
void columns(const Forward& f, int64_t sample, int64_t first, int count, int64_t channels,
             int64_t map, A* partials) {
  Sums sums;
  sums.clear(count);
  for (int64_t m = 0; m < map; ++m)
    f.run((sample * map + m) * channels + first, count, sums);
  if (!kNames) return;
  for (int i = 0; i < count; ++i)
    Channel{sums.rate[i], sums.potential[i], sums.charge[i], sums.mean[i], sums.max[i]}.write(
        partials + (sample * channels + first + i) * kNames, double(f.steps), double(map));
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The backward pass over elements that all tensors have at the same place.
struct Backward {
  const A* grad_s;  // may be null, as the next two
  const A* grad_v;
  const A* grad_v_seq;
  const A* x;
  const A* v0;
  A* grad_x;
  A* grad_v0;  // null where nobody asks for it
  int64_t steps, stride, v0_stride;
  sj::Neuron<V> neuron;

  // kWide blocks from `at`, or the first `count` elements of one; `charges` holds kWidth blocks a
  // step, for PLIF twice as many. Returns their part of dL/dq.
  template <bool kSpikes, bool kSequence, bool kWhole, int kWide>
  SJ_MEMBER V blocks(int64_t at, int count, V* charges) const {
    const sj::Neuron<V> n = neuron;
    V* const pulls = charges + kWidth * steps;
    V now[kWide], carry[kWide];
    for (int k = 0; k < kWide; ++k)
      now[k] = v0_stride ? get<kWhole>(v0 + at + k * kLanes, count) : V(v0[0]);
    int64_t from = at;
    for (int64_t t = 0; t < steps; ++t, from += stride) {
#pragma GCC unroll 8
      for (int k = 0; k < kWide; ++k) {
        const V input = get<kWhole>(x + from + k * kLanes, count);
        const V h = sj::charge(input, now[k], n);
        charges[t * kWide + k] = h;
        if (SJ_KIND == 2) pulls[t * kWide + k] = sj::pull(input, now[k], n);
        now[k] = sj::settle(h, sj::fire(h, n), n);
      }
    }
    for (int k = 0; k < kWide; ++k)
      carry[k] = grad_v ? get<kWhole>(grad_v + at + k * kLanes, count) : V(0);
    V grad_q = 0;
    for (int64_t t = steps - 1; t >= 0; --t) {
      from -= stride;
#pragma GCC unroll 8
      for (int k = 0; k < kWide; ++k) {
        const int64_t here = from + k * kLanes;
        if (kSequence) carry[k] += get<kWhole>(grad_v_seq + here, count);
        const V given = kSpikes ? get<kWhole>(grad_s + here, count) : V(0);
        const auto g = sj::unwind(given, carry[k], charges[t * kWide + k], n);
        put<kWhole>(grad_x + here, count, g.x);
        carry[k] = g.carry;
        if (SJ_KIND == 2) grad_q += g.h * pulls[t * kWide + k];
      }
    }
    if (grad_v0)
      for (int k = 0; k < kWide; ++k) put<kWhole>(grad_v0 + at + k * kLanes, count, carry[k]);
    return grad_q;
  }

  // `count` elements from `at`; returns their part of dL/dq.
  template <bool kSpikes, bool kSequence>
  double tile(int64_t at, int count, V* charges) const {
    double grad_q = 0;
    int i = 0;
    for (; i + kWidth * kLanes <= count; i += kWidth * kLanes) {
      const V part = blocks<kSpikes, kSequence, true, kWidth>(at + i, kLanes, charges);
      if (SJ_KIND == 2) grad_q += sj::total(part);
    }
    for (; i + kLanes <= count; i += kLanes) {
      const V part = blocks<kSpikes, kSequence, true, 1>(at + i, kLanes, charges);
      if (SJ_KIND == 2) grad_q += sj::total(part);
    }
    if (i < count) {
      A part[kLanes];
      blocks<kSpikes, kSequence, false, 1>(at + i, count - i, charges).store(part);
      if (SJ_KIND == 2)
        for (int j = 0; i + j < count; ++j) grad_q += part[j];
    }
    return grad_q;
  }

  double run(int64_t at, int count, V* charges) const {
    if (grad_v_seq)
      return grad_s ? tile<true, true>(at, count, charges) : tile<false, true>(at, count, charges);
    return grad_s ? tile<true, false>(at, count, charges) : tile<false, false>(at, count, charges);
  }
};

}  // namespace

extern "C" void sj_forward(const A* x, const A* v0, A* spikes, A* v, A* partials, A* v_seq,
                           A* h_seq, A* g_seq, int64_t steps, int64_t samples, int64_t count,
                           int64_t map, int64_t v0_stride, int channels_last, double threshold,
                           double reset, double decay, double alpha, int threads) {
  const Forward f{x,     v0,    spikes,
                  v,     v_seq, h_seq,
                  g_seq, steps, samples * count * map,
                  v0_stride, {A(threshold), A(reset), A(decay), A(alpha)}};
  const int64_t rows = samples * count;
  if (channels_last || map == 1) {
    const int64_t tiles = divide_up(count, kTile);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < samples * tiles; ++unit) {
      const int64_t first = unit % tiles * kTile;
      columns(f, unit / tiles, first, int(std::min<int64_t>(kTile, count - first)), count, map,
              partials);
    }
  } else if (map >= kTile || map % kLanes == 0) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) one_channel(f, row, map, partials);
  } else {
    const int64_t group = kTile / map;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < divide_up(rows, group); ++unit)
      some_channels(f, unit * group, int(std::min(group, rows - unit * group)), map, partials);
  }
}

// Any dense layout that all tensors share. `grad_q` has one entry a unit of kTile elements, to be
// summed by the caller in that order.
extern "C" void sj_backward(const A* grad_s, const A* grad_v, const A* grad_v_seq, const A* x,
                            const A* v0, A* grad_x, A* grad_v0, double* grad_q, int64_t steps,
                            int64_t elements, int64_t v0_stride, double threshold, double reset,
                            double decay, double alpha, int threads) {
  const Backward b{grad_s,  grad_v, grad_v_seq, x,         v0, grad_x,
                   grad_v0, steps,  elements,   v0_stride, {A(threshold), A(reset), A(decay), A(alpha)}};
  const int64_t units = divide_up(elements, kTile);
#pragma omp parallel num_threads(threads)
  {
    std::vector<V> charges(kWidth * size_t(steps) * (SJ_KIND == 2 ? 2 : 1));
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t at = unit * kTile;
      const int count = int(std::min<int64_t>(kTile, elements - at));
      const double part = b.run(at, count, charges.data());
      if (SJ_KIND == 2) grad_q[unit] = part;
    }
  }
}

extern "C" int64_t sj_tile() { return kTile; }
