// From the sums of one output channel over a tile to its spikes, or to real numbers: bias, what a
// residual connection adds, the neurons of step.h, packing.
#pragma once

#include "deploy_tile.h"

namespace {

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

SJ_FN F::Mask widen(const uint8_t* from) {
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, F::Mask);
}

struct Finish {
  const Layer& layer;
  sj::Neuron<F> neuron;

  explicit Finish(const Layer& l)
      : layer(l),
        neuron{{F(float(l.threshold)), F(float(l.reset)), F(float(l.decay)), F(1.0f),
                F(SJ_HARD ? 0.0f : 1.0f), F(SJ_HARD ? float(l.reset) : -float(l.threshold))}} {}

  // `sums` [in_steps, P] has room for [T, P] and a vector more.
  void run(const Tile& tile, int64_t channel, float* sums) const {
    const int lanes = int(layer.steps * tile.count);
    if (layer.in_steps == 1)
      for (int64_t t = 1; t < layer.steps; ++t)
        std::memcpy(sums + t * tile.count, sums, tile.count * sizeof(float));
    const F bias(layer.bias ? layer.bias[channel] : 0.0f);
    const bool rest = layer.rest || layer.rest_real;
    if (layer.out && !rest) {
      fire(tile, channel, sums, bias);
      return;
    }
    for (int k = 0; k < lanes; k += kLanes) (F::load(sums + k) + bias).store(sums + k);
    if (layer.rest || layer.rest_real) add_rest(tile, channel, sums);
    if (layer.out)
      fire(tile, channel, sums, F(0.0f));
    else
      write(tile, channel, sums);
  }

  int64_t image(int64_t outer, const Segment& s, int64_t channel) const {
    return ((outer * layer.samples + s.sample) * layer.channels + channel) * layer.map() + s.at;
  }

  void add_rest(const Tile& tile, int64_t channel, float* sums) const {
    float rest[kMost + kLanes];
    const int lanes = int(layer.steps * tile.count);
    if (layer.rest)
      unpack_rest(tile, channel, rest);
    else
      for (int64_t t = 0; t < layer.steps; ++t)
        for (const Segment& s : tile.segments)
          std::memcpy(rest + t * tile.count + s.to,
                      layer.rest_real + image(layer.rest_steps == 1 ? 0 : t, s, channel),
                      s.length * sizeof(float));
    const F scale(float(layer.rest_scale));
    for (int k = 0; k < lanes; k += kLanes)
      (F::load(sums + k) + scale * F::load(rest + k)).store(sums + k);
  }

  void unpack_rest(const Tile& tile, int64_t channel, float* rest) const {
    uint8_t line[kMost + kLanes];
    std::fill(rest, rest + kMost + kLanes, 0.0f);
    for (int64_t b = 0; b < layer.rest_planes; ++b)
      for (int64_t g = 0; g < layer.groups(); ++g) {
        for (const Segment& s : tile.segments)
          std::memcpy(line + s.to, layer.rest + image(b * layer.groups() + g, s, channel),
                      s.length);
        const int last = int(std::min<int64_t>(8, layer.steps - 8 * g));
        for (int t = 0; t < last; ++t)
          for (int p = 0; p < tile.count; ++p)
            rest[(8 * g + t) * tile.count + p] += float((line[p] >> t & 1) << b);
      }
  }

  void fire(const Tile& tile, int64_t channel, const float* sums, F bias) const {
    float v[kMost + kLanes];
    const bool kept = layer.v || layer.steps > 8;
    if (layer.v) carry(tile, channel, v, true);
    for (int64_t g = 0; g < layer.groups(); ++g) {
      uint8_t line[kMost + kLanes];
      const bool first = !layer.v && g == 0;
      for (int p = 0; p < tile.count; p += kLanes)
        group(tile.count, g, sums + p, bias, first, kept, v + p, line + p);
      for (const Segment& s : tile.segments)
        std::memcpy(layer.out + image(g, s, channel), line + s.to, s.length);
    }
    if (layer.v) carry(tile, channel, v, false);
  }

  // Up to eight steps of one vector of neurons.
  SJ_MEMBER void group(int count, int64_t g, const float* sums, F bias, bool first, bool kept,
                       float* v, uint8_t* line) const {
    const int64_t last = std::min(layer.steps, 8 * g + 8);
    F now = first ? neuron.reset : F::load(v);
    F::Mask bits = {};
    for (int64_t t = 8 * g; t < last; ++t) {
      const F h = sj::charge(F::load(sums + t * count) + bias, now, neuron);
      now = sj::settle(h, sj::fire(h, neuron), neuron);
      bits |= (h >= neuron.threshold) & (int32_t(1) << (t & 7));
    }
    if (kept) now.store(v);
    const Bytes bytes = __builtin_convertvector(bits, Bytes);
    std::memcpy(line, &bytes, sizeof bytes);
  }

  // Potentials from the last call, or for the next one.
  void carry(const Tile& tile, int64_t channel, float* v, bool in) const {
    for (const Segment& s : tile.segments) {
      float* const kept = layer.v + image(0, s, channel);
      std::memcpy(in ? v + s.to : kept, in ? kept : v + s.to, s.length * sizeof(float));
    }
  }

  void write(const Tile& tile, int64_t channel, const float* sums) const {
    for (int64_t t = 0; t < layer.steps; ++t)
      for (const Segment& s : tile.segments)
        std::memcpy(layer.out_real + image(t, s, channel), sums + t * tile.count + s.to,
                    s.length * sizeof(float));
  }
};

}  // namespace
