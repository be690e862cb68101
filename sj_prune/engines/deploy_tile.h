// What one synaptic layer is, and how its outputs are divided into tiles.
//
// Spikes lie packed: `bytes [B, G, N, C, H, W]`, bit t of group g is step 8 g + t, and B planes are
// the binary digits of a count (a spike is a count of one digit; sums of spikes and average pooling
// make more). A tile is P positions (of the map, running on into the next sample) at all T steps: T
// P lanes, which the accumulators of one output channel hold in registers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "step.h"

namespace {

using F = sj::Lanes<float>;

constexpr int kLanes = F::kCount;
// Accumulators of a tile: what fits the registers beside weights and masks.
constexpr int kVectors = kLanes == 16 ? 16 : 12;
constexpr int kMost = kVectors * kLanes;  // lanes of a tile
constexpr int kSlack = 64;                // bytes that may be read or written past an end

// Sums side by side over `Wide` vectors each, and all of them as one.
template <int Side, int Wide>
SJ_FN void clear(F (&sums)[Side][Wide]) {
#pragma GCC unroll 16
  for (int k = 0; k < Side; ++k)
#pragma GCC unroll 16
    for (int v = 0; v < Wide; ++v) sums[k][v] = F(0.0f);
}

template <int Side, int Wide>
SJ_FN void store(const F (&sums)[Side][Wide], float* to) {
#pragma GCC unroll 16
  for (int v = 0; v < Wide; ++v) {
    F sum = sums[0][v];
#pragma GCC unroll 4
    for (int k = 1; k < Side; ++k) sum += sums[k][v];
    sum.store(to + v * kLanes);
  }
}

// One weight: the row of the tile's inputs that it multiplies.
struct Entry {
  uint32_t row;
  float weight;
};

// As in deploy_engine.py.
struct Layer {
  const uint8_t* in;     // packed [B, G, N, C, H, W], or null
  const float* in_real;  // [steps, N, C, H, W], or null
  const int64_t* start;  // [channels + 1]
  const Entry* entries;  // by output channel; for the event kernel rows of floats
  const float* bias;         // [channels], or null
  const uint8_t* rest;       // what is added, packed [B', G, N, channels, M], or null
  const float* rest_real;    // or [T, N, channels, M]
  uint8_t* out;              // packed [G, N, channels, M], or null: no neurons
  float* out_real;           // [T, N, channels, M]
  float* v;                  // [N, channels, M] from call to call, or null: from rest
  int64_t steps, in_steps;   // in_steps 1: every step reads the same input
  int64_t samples, in_channels, height, width;
  int64_t channels, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t planes, rest_planes, rest_steps;
  int64_t threads;
  double threshold, reset, decay, rest_scale;

  int64_t map() const { return out_height * out_width; }
  int64_t groups() const { return (steps + 7) / 8; }
  int64_t kernel() const { return kernel_h * kernel_w; }
  int64_t rows() const { return planes * in_channels * kernel(); }
};

// Room of one thread, kept from call to call; `Which` tells apart what is in use at the same time.
template <typename X, int Which = 0>
X* room(size_t count) {
  thread_local std::vector<X> kept;
  if (kept.size() < count) kept.resize(count);
  return kept.data();
}

// `length` outputs of one sample, from position `at` of the map; `to` counts within the tile.
struct Segment {
  int64_t sample, at;
  int to, length;
};

// Positions first .. first + count of all samples' maps laid end to end.
struct Tile {
  int count = 0;
  std::vector<Segment> segments;  // by sample
  std::vector<Segment> lines;     // by sample and row of the map

  Tile(const Layer& layer, int64_t first, int64_t end) : count(int(end - first)) {
    const int64_t map = layer.map(), width = layer.out_width;
    cut(first, end, map, map, segments);
    cut(first, end, map, width, lines);
  }

  static void cut(int64_t first, int64_t end, int64_t map, int64_t every,
                  std::vector<Segment>& into) {
    for (int64_t p = first; p < end;) {
      const int64_t stop = std::min(end, (p / every + 1) * every);
      into.push_back({p / map, p % map, int(p - first), int(stop - p)});
      p = stop;
    }
  }
};

// How positions are divided, evenly, so that a tile has at most `lanes` lanes.
struct Division {
  int64_t positions, tiles;

  Division(const Layer& layer, int64_t steps, int lanes)
      : positions(layer.samples * layer.map()),
        tiles((positions + std::max<int64_t>(1, lanes / steps) - 1) /
              std::max<int64_t>(1, lanes / steps)) {}
  int64_t first(int64_t tile) const { return positions * tile / tiles; }
};

// The input with its padding, columns sorted by their remainder modulo the stride: so the inputs of
// neighboring outputs lie side by side, whatever the stride and the dilation.
template <typename X>
struct Padded {
  int64_t tall, wide, phases, plane;
  std::vector<X> own;
  const X* at;

  Padded(const Layer& layer, const X* in, int64_t planes)
      : tall((layer.out_height - 1) * layer.stride_h + (layer.kernel_h - 1) * layer.dilation_h + 1),
        wide(layer.out_width + (layer.kernel_w - 1) * layer.dilation_w / layer.stride_w),
        phases(layer.stride_w),
        plane(tall * wide * phases),
        at(in) {
    if (phases == 1 && tall == layer.height && wide == layer.width && !layer.pad_h && !layer.pad_w)
      return;
    own.resize(planes * plane + kSlack);
    at = own.data();
#pragma omp parallel for num_threads(layer.threads) if (planes * plane > 1 << 15)
    for (int64_t i = 0; i < planes; ++i)
      fill(layer, in + i * layer.height * layer.width, own.data() + i * plane);
  }

  void fill(const Layer& layer, const X* from, X* to) const {
    const int64_t rows = std::min(tall, layer.height + layer.pad_h);
    for (int64_t phase = 0; phase < phases; ++phase) {
      const int64_t shift = layer.pad_w - phase;  // column q * stride - shift of the input
      const int64_t first = shift > 0 ? (shift + phases - 1) / phases : 0;
      const int64_t reach = layer.width + shift;
      const int64_t end = reach > 0 ? std::min(wide, (reach + phases - 1) / phases) : 0;
      for (int64_t r = layer.pad_h; r < rows; ++r) {
        const X* const line = from + (r - layer.pad_h) * layer.width;
        X* const into = to + (r * phases + phase) * wide;
        if (phases == 1)
          copy(line + first - shift, end - first, into + first);
        else
          for (int64_t q = first; q < end; ++q) into[q] = line[q * phases - shift];
      }
    }
  }

  // Lines are short: a call of memcpy would take longer.
  static void copy(const X* from, int64_t count, X* to) {
    constexpr int64_t kPart = 8;
    int64_t k = 0;
    for (; k + kPart <= count; k += kPart) std::memcpy(to + k, from + k, kPart * sizeof(X));
    for (; k < count; ++k) to[k] = from[k];
  }

  // Where the inputs of output (oh, ow) for the first element of the kernel lie.
  int64_t origin(const Layer& layer, int64_t position) const {
    const int64_t oh = position / layer.out_width, ow = position % layer.out_width;
    return oh * layer.stride_h * phases * wide + ow;
  }

  // How far from there the element (i, j) of the kernel lies.
  int64_t offset(const Layer& layer, int64_t i, int64_t j) const {
    const int64_t column = j * layer.dilation_w;
    return (i * layer.dilation_h * phases + column % phases) * wide + column / phases;
  }
};

}  // namespace
