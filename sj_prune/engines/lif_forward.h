// The forward pass of the CPU engine: blocks through all time steps, and the sums over them.
#pragma once

#include "lif_block.h"

namespace {

constexpr A kLowest = -__builtin_huge_val();

// Sums over time of one block.
struct Block {
  V of[kRows] = {};

  SJ_MEMBER void add(V s, V v, V h, V g) {
    V value[kRows];
    sj::quantities(value, s, v, h, g);
#pragma GCC unroll 16
    for (int k = 0; k < kSums; ++k) of[k] += value[k];
  }
};

// Statistics of the elements of a tile over time, or of a tile of channels over time and map.
struct Sums {
  A of[kRows][kTile + kLanes];  // a block may end beyond the tile: never read

  void clear(int count) {
    for (int k = 0; k < kNames; ++k)
      for (int i = 0; i < count; i += kLanes) V(is_maximum(k) ? kLowest : A(0)).store(of[k] + i);
  }

  SJ_MEMBER void add(int at, const Block& block) {
#pragma GCC unroll 16
    for (int k = 0; k < kNames; ++k) {
      const V now = V::load(of[k] + at), more = block.of[sum_of(k)];
      (is_maximum(k) ? sj::larger(now, more) : now + more).store(of[k] + at);
    }
  }
};

// Statistics of one channel over time and map.
struct Channel {
  double of[kRows];

  Channel() {
    for (int k = 0; k < kNames; ++k) of[k] = is_maximum(k) ? kLowest : 0;
  }
  SJ_MEMBER Channel(const Sums& sums, int i) {
    for (int k = 0; k < kNames; ++k) of[k] = sums.of[k][i];
  }

  SJ_MEMBER void add(int k, double more) {
    of[k] = is_maximum(k) ? sj::larger(of[k], more) : of[k] + more;
  }

  // Adds the elements first .. last of a tile.
  void add(const Sums& sums, int first, int last) {
    Channel found = *this;  // in registers
    for (int i = first; i < last; ++i)
#pragma GCC unroll 16
      for (int k = 0; k < kNames; ++k) found.add(k, sums.of[k][i]);
    *this = found;
  }

  // Writes the means: the sums divided by the number of steps and elements of the map.
  SJ_MEMBER void write(A* out, double steps, double map) const {
    const double per_step = 1.0 / steps, per_element = 1.0 / (steps * map);
    for (int k = 0; k < kNames; ++k) out[k] = A(of[k] * (is_maximum(k) ? per_step : per_element));
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
        const V g = sj::derivative(h - n.threshold, n);
        sums[k].add(s, now[k], h, g);
        if (kStoreV) put<kWhole>(v_seq + here, count, now[k]);
        if (kTrace) {
          put<kWhole>(h_seq + here, count, h);
          put<kWhole>(g_seq + here, count, g);
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
    V most[kRows];
    for (V& one : most) one = kLowest;
    int i = 0;
    auto take = [&](const Block& one) {
#pragma GCC unroll 16
      for (int k = 0; k < kSums; ++k) all.of[k] += one.of[k];
#pragma GCC unroll 16
      for (int k = 0; k < kNames; ++k)
        if (is_maximum(k)) {
          const V more = one.of[sum_of(k)];
          most[k] = sj::select(most[k] > more, most[k], more);
        }
    };
    for (; i + kWidth * kLanes <= count; i += kWidth * kLanes) {
      Block sums[kWidth];
      blocks<true, kWidth>(at + i, kLanes, sums);
      for (const Block& one : sums) take(one);
    }
    for (; i + kLanes <= count; i += kLanes) take(block(at + i));
#pragma GCC unroll 16
    for (int k = 0; k < kNames; ++k) {
      const A sum = sj::total(all.of[sum_of(k)]);
      // The maximum of numbers is the cheaper one; the sum knows of a nan (else this adds 0).
      channel.add(k, is_maximum(k) ? sj::largest(most[k]) + (sum - sum) : sum);
    }
    if (i < count) rest(at + i, count - i, channel);
  }

  // The last elements of a channel, fewer than a block has.
  void rest(int64_t at, int count, Channel& channel) const {
    Sums sums;
    sums.clear(count);
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
    for (int i = 0; i < count; ++i) Channel(sums, i).write(out + i * kNames, steps, size);
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
