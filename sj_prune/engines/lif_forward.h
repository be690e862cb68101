// The forward pass of the CPU engine: blocks through all time steps, and the sums over them.
#pragma once

#include "lif_block.h"

namespace {

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
    if (kRate) fill(rate, rate + count, A(0));
    if (kPotential) fill(potential, potential + count, A(0));
    if (kCharge) fill(charge, charge + count, A(0));
    if (kDerivative) {
      fill(mean, mean + count, A(0));
      fill(max, max + count, A(0));  // g' >= 0 for every surrogate of the table
    }
  }

  SJ_MEMBER void add(int at, const Block& block) {
    if (kRate) (V::load(rate + at) + block.rate).store(rate + at);
    if (kPotential) (V::load(potential + at) + block.potential).store(potential + at);
    if (kCharge) (V::load(charge + at) + block.charge).store(charge + at);
    if (kMean) (V::load(mean + at) + block.derivative).store(mean + at);
    if (kMax) sj::larger(V::load(max + at), block.derivative).store(max + at);
  }
};

// Sums over time and map of one channel.
struct Channel {
  double rate = 0, potential = 0, charge = 0, mean = 0, max = 0;

  // Adds the elements first .. last of a tile.
  void add(const Sums& sums, int first, int last) {
    for (int i = first; i < last; ++i) {
      if (kRate) rate += sums.rate[i];
      if (kPotential) potential += sums.potential[i];
      if (kCharge) charge += sums.charge[i];
      if (kMean) mean += sums.mean[i];
      if (kMax) max = sj::larger(max, double(sums.max[i]));
    }
  }

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

template <typename N>
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
  N neuron;

  // All steps of kWide blocks from `at`, or of the first `count` elements of one. Blocks side by
  // side keep the processor busy while each waits for its previous step.
  template <bool kWhole, int kWide>
  SJ_MEMBER void blocks(int64_t at, int count, Block (&sums)[kWide]) const {
    const N n = neuron;
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
        if (kStoreV) put<kWhole>(v_seq + here, count, now[k]);
        if (kTrace) {
          put<kWhole>(h_seq + here, count, h);
          put<kWhole>(g_seq + here, count, sj::derivative(h - n.threshold, n));
        }
      }
    }
    for (int k = 0; k < kWide; ++k) put<kWhole>(v + at + k * kLanes, count, now[k]);
  }

  SJ_MEMBER Block block(int64_t at) const {
    Block sums[1];
    blocks<true, 1>(at, kLanes, sums);
    return sums[0];
  }

  SJ_MEMBER Block part(int64_t at, int count) const {
    Block sums[1];
    blocks<false, 1>(at, count, sums);
    return sums[0];
  }

  // `count` elements from `at`, element by element into `sums`.
  void tile(int64_t at, int count, Sums& sums) const {
    int i = 0;
    for (; i + kWidth * kLanes <= count; i += kWidth * kLanes) {
      Block found[kWidth];
      blocks<true, kWidth>(at + i, kLanes, found);
      for (int k = 0; k < kWidth; ++k) sums.add(i + k * kLanes, found[k]);
    }
    for (; i + kLanes <= count; i += kLanes) sums.add(i, block(at + i));
    if (i < count) sums.add(i, part(at + i, count - i));
  }

  // `count` elements from `at` of one channel.
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
      blocks<true, kWidth>(at + i, kLanes, sums);
      for (const Block& one : sums) take(one);
    }
    for (; i + kLanes <= count; i += kLanes) take(block(at + i));
    if (kRate) channel.rate += sj::total(all.rate);
    if (kPotential) channel.potential += sj::total(all.potential);
    if (kCharge) channel.charge += sj::total(all.charge);
    if (kMean) channel.mean += sj::total(all.derivative);
    if (kMax) {
      // The maximum of numbers is the cheaper one; the sum knows of a nan (else this adds 0).
      const A sum = sj::total(all.derivative);
      channel.max = sj::larger(channel.max, double(sj::largest(max) + (sum - sum)));
    }
    if (i < count) rest(at + i, count - i, channel);
  }

  // The last elements of a channel, fewer than a block has.
  void rest(int64_t at, int count, Channel& channel) const {
    Sums sums;
    sums.clear(0);
    sums.add(0, part(at, count));
    channel.add(sums, 0, count);
  }

};

// Channels first, a map that blocks divide or a large one: one channel, tile by tile.
template <typename N>
void one_channel(const Forward<N>& f, int64_t row, int64_t map, A* partials) {
  Channel channel;
  for (int64_t m = 0; m < map; m += kTile)
    f.tile(row * map + m, int(smaller(kTile, map - m)), channel);
  channel.write(partials + row * kNames, double(f.steps), double(map));
}

// Channels first, a small map: several whole channels in one tile.
template <typename N>
void some_channels(const Forward<N>& f, int64_t row, int count, int64_t map, A* partials) {
  Sums sums;
  const int elements = int(count * map);
  sums.clear(elements);
  f.tile(row * map, elements, sums);
  for (int c = 0; c < count; ++c) {
    Channel channel;
    channel.add(sums, int(c * map), int((c + 1) * map));
    channel.write(partials + (row + c) * kNames, double(f.steps), double(map));
  }
}

// Channels last: a tile of channels, over at most kTile elements of the map from `begin`.
template <typename N>
void columns_once(const Forward<N>& f, int64_t begin, int count, int64_t channels, int64_t map,
                  Sums& sums) {
  sums.clear(count);
  for (int64_t m = 0; m < map; ++m) f.tile(begin + m * channels, count, sums);
}

// Channels last: a tile of channels, over the whole map.
template <typename N>
void columns(const Forward<N>& f, int64_t sample, int64_t first, int count, int64_t channels,
             int64_t map, A* partials) {
  const int64_t begin = sample * map * channels + first;
  A* const out = partials + (sample * channels + first) * kNames;
  const double steps = double(f.steps), size = double(map);
  Sums sums;
  if (map <= kTile || !kNames) {
    columns_once(f, begin, count, channels, map, sums);
    if (!kNames) return;
    for (int i = 0; i < count; ++i)
      Channel{sums.rate[i], sums.potential[i], sums.charge[i], sums.mean[i], sums.max[i]}.write(
          out + i * kNames, steps, size);
    return;
  }
  Channel found[kTile];
  for (int64_t m = 0; m < map; m += kTile) {
    columns_once(f, begin + m * channels, count, channels, smaller(kTile, map - m), sums);
    for (int i = 0; i < count; ++i) found[i].add(sums, i, i + 1);
  }
  for (int i = 0; i < count; ++i) found[i].write(out + i * kNames, steps, size);
}

}  // namespace
