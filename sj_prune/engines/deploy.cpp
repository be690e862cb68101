// The engine of deployed networks: one layer of weights, its neurons and its packing at a time; and
// pooling of packed spikes. Built for one variant of step.h by deploy_engine.py.
//
// Which weights are multiplied with which inputs is a list of (row, weight) for each output
// channel; rows are the inputs of a tile, see deploy_rows.h. Sums run in the order of the list, so
// results do not depend on the number of threads.
#include "deploy_events.h"
#include "deploy_finish.h"
#include "deploy_kernels.h"
#include "deploy_pool.h"

using std::int64_t;

namespace {

enum Kernel { kBits, kReals, kEvents, kNeurons };

// The channels of one of `parts` shares of about as many weights.
std::pair<int64_t, int64_t> share(const Layer& layer, int64_t part, int64_t parts) {
  const int64_t each = 16;  // what a channel costs beside its weights
  auto first = [&](int64_t k) {
    if (k == parts) return layer.channels;
    const int64_t wanted = (layer.start[layer.channels] + each * layer.channels) * k / parts;
    int64_t low = 0, high = layer.channels;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (layer.start[middle] + each * middle < wanted)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  return {first(part), first(part + 1)};
}

// Rows of one kind for a layer: how they are divided, built and summed.
struct BitSource {
  using Rows = Bits;
  using Item = uint64_t;
  Padded<uint8_t> input;
  int64_t steps;

  explicit BitSource(const Layer& l)
      : input(l, l.in, l.planes * l.groups() * l.samples * l.in_channels), steps(l.steps) {}
  int most() const { return kMost; }
  int64_t stride(int64_t positions) const { return words_of(steps * positions); }
  void build(const Layer& l, const Tile& t, int64_t first, int64_t end, uint64_t* to) const {
    BitRows{l, input}.build(t, first, end, to);
  }
};

struct RealSource {
  using Rows = Reals;
  using Item = float;
  Padded<float> input;
  int64_t steps;

  explicit RealSource(const Layer& l)
      : input(l, l.in_real, l.in_steps * l.samples * l.in_channels), steps(l.in_steps) {}
  // Rows of many inputs shall stay in the cache; all steps of an output belong to its tile.
  int most() const { return kMost; }
  int64_t stride(int64_t positions) const {
    return (steps * positions + kLanes - 1) / kLanes * kLanes;
  }
  void build(const Layer& l, const Tile& t, int64_t first, int64_t end, float* to) const {
    RealRows{l, input}.build(t, first, end, to, stride(t.count));
  }
};

template <typename Source>
void channels_of(const Layer& layer, const Source& source, const Tile& tile,
                 const typename Source::Item* rows, int64_t first, int64_t end) {
  const int64_t stride = source.stride(tile.count);
  const int vectors = int((source.steps * tile.count + kLanes - 1) / kLanes);
  const typename Source::Rows view{rows, stride};
  const auto sum = sum_for<typename Source::Rows>(vectors);
  const Finish finish(layer);
  alignas(64) float sums[kMost + kLanes];
  for (int64_t o = first; o < end; ++o) {
    sum(view, layer.entries + layer.start[o], layer.entries + layer.start[o + 1], sums);
    finish.run(tile, o, sums);
  }
}

// Many tiles: each belongs to one thread. Few: rows are built together, and threads share channels.
template <typename Source>
void layer_of_rows(const Layer& layer) {
  using Item = typename Source::Item;
  const Source source(layer);
  const Division division(layer, layer.steps, source.most());
  const int64_t threads = layer.threads, planes = layer.planes * layer.in_channels;
  const int64_t most = (division.positions + division.tiles - 1) / division.tiles;
  const int64_t size = layer.rows() * source.stride(most) + kSlack;
  auto tile_at = [&](int64_t k) { return Tile(layer, division.first(k), division.first(k + 1)); };
  if (threads == 1 || division.tiles >= 3 * threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t k = 0; k < division.tiles; ++k) {
      Item* const rows = room<Item>(size);
      const Tile tile = tile_at(k);
      source.build(layer, tile, 0, planes, rows);
      channels_of(layer, source, tile, rows, 0, layer.channels);
    }
    return;
  }
  Item* const rows = room<Item>(division.tiles * size);
  const int64_t parts = std::min(planes, threads), shares = std::min(layer.channels, 4 * threads);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < division.tiles * parts; ++k) {
      const int64_t part = k % parts;
      source.build(layer, tile_at(k / parts), planes * part / parts, planes * (part + 1) / parts,
                   rows + k / parts * size);
    }
#pragma omp for schedule(dynamic)
    for (int64_t k = 0; k < division.tiles * shares; ++k) {
      const auto [first, end] = share(layer, k % shares, shares);
      channels_of(layer, source, tile_at(k / shares), rows + k / shares * size, first, end);
    }
  }
}

// Sums that came from elsewhere, `in_real` [in_steps, N, channels, M]: only what follows them.
void layer_of_sums(const Layer& layer) {
  const Division division(layer, layer.steps, kMost);
  const Finish finish(layer);
#pragma omp parallel for num_threads(layer.threads) schedule(static)
  for (int64_t k = 0; k < division.tiles; ++k) {
    const Tile tile(layer, division.first(k), division.first(k + 1));
    float sums[kMost + kLanes];
    for (int64_t o = 0; o < layer.channels; ++o) {
      for (int64_t t = 0; t < layer.in_steps; ++t)
        for (const Segment& s : tile.segments)
          std::memcpy(sums + t * tile.count + s.to, layer.in_real + finish.image(t, s, o),
                      s.length * sizeof(float));
      finish.run(tile, o, sums);
    }
  }
}

}  // namespace

extern "C" int64_t sj_lanes() { return kMost; }

extern "C" void sj_layer(const char* packed, int64_t kernel) {
  Layer layer;
  std::memcpy(&layer, packed, sizeof layer);
  switch (kernel) {
    case kBits: return layer_of_rows<BitSource>(layer);
    case kReals: return layer_of_rows<RealSource>(layer);
    case kEvents: return Events(layer).run();
    default: return layer_of_sums(layer);
  }
}

extern "C" void sj_pool(const char* packed) {
  Pool pool;
  std::memcpy(&pool, packed, sizeof pool);
  pool.run();
}

extern "C" void sj_unpack(const uint8_t* in, float* out, int64_t steps, int64_t planes,
                          int64_t size, double scale, int64_t threads) {
  unpack(in, out, steps, planes, size, float(scale), threads);
}

extern "C" void sj_add(const char* packed) {
  Addition addition;
  std::memcpy(&addition, packed, sizeof addition);
  addition.run();
}
