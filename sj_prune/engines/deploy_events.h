// Layers by their events: for every output, the rows of dense weights whose inputs spike are added,
// output channels side by side. The work grows with the firing rate, not with the density.
#pragma once

#include "deploy_finish.h"
#include "deploy_rows.h"

namespace {

// Which channels spike (planes and channels counted together), for every pixel of the input and
// every step. Made block by block of pixels: first listed at fixed places, then moved together.
struct Lists {
  static constexpr int kBlock = 64;
  struct Run {
    uint32_t from, count;  // within its block
  };
  const Layer& layer;
  int64_t map, blocks, wide;
  const int64_t* first;      // [N, blocks]: where a block begins
  const Run* runs;           // [N, blocks, T, kBlock]
  const uint16_t* channels;  // and kLanes that may be read behind them

  explicit Lists(const Layer& l)
      : layer(l),
        map(l.height * l.width),
        blocks((map + kBlock - 1) / kBlock),
        wide(l.planes * l.in_channels) {
    const int64_t count = l.samples * blocks;
    int64_t* const starts = room<int64_t>(count + 1);
    Run* const into = room<Run>(count * l.steps * kBlock);
#pragma omp parallel for num_threads(l.threads) schedule(static)
    for (int64_t k = 0; k < count; ++k) starts[k + 1] = spikes(k);
    starts[0] = 0;
    for (int64_t k = 0; k < count; ++k) starts[k + 1] += starts[k];
    uint16_t* const to = room<uint16_t, 1>(starts[count] + kSlack);
#pragma omp parallel for num_threads(l.threads) schedule(dynamic)
    for (int64_t k = 0; k < count; ++k) list(k, into + k * l.steps * kBlock, to + starts[k]);
    first = starts, runs = into, channels = to;
  }

  // Bytes of the first pixel of a block, of a plane and channel.
  const uint8_t* bytes(int64_t block, int64_t c, int64_t g) const {
    const int64_t plane = c / layer.in_channels, channel = c % layer.in_channels;
    const int64_t sample = (plane * layer.groups() + g) * layer.samples + block / blocks;
    return layer.in + (sample * layer.in_channels + channel) * map + block % blocks * kBlock;
  }

  int pixels(int64_t block) const {
    return int(std::min<int64_t>(kBlock, map - block % blocks * kBlock));
  }

  int64_t spikes(int64_t block) const {
    int64_t found = 0;
    const int count = pixels(block);
    for (int64_t g = 0; g < layer.groups(); ++g)
      for (int64_t c = 0; c < wide; ++c) {
        uint8_t line[kBlock] = {};
        std::memcpy(line, bytes(block, c, g), count);
        uint64_t words[kBlock / 8];
        std::memcpy(words, line, sizeof words);
        for (uint64_t w : words) found += __builtin_popcountll(w);
      }
    return found;
  }

  void list(int64_t block, Run* into, uint16_t* to) const {
    const int count = pixels(block);
    const uint64_t used = ~uint64_t(0) >> (kBlock - count);
    uint16_t* const places = room<uint16_t, 2>(layer.steps * kBlock * wide + kSlack);
    std::fill(into, into + layer.steps * kBlock, Run{0, 0});
    for (int64_t g = 0; g < layer.groups(); ++g) {
      const int last = int(std::min<int64_t>(8, layer.steps - 8 * g));
      for (int64_t c = 0; c < wide; ++c) {
        const uint8_t* const line = bytes(block, c, g);
        for (int t = 0; t < last; ++t) {
          const int64_t step = (8 * g + t) * kBlock;
          for (uint64_t bits = bits_of(line, t) & used; bits; bits &= bits - 1) {
            const int64_t place = step + __builtin_ctzll(bits);
            places[place * wide + into[place].count++] = uint16_t(c);
          }
        }
      }
    }
    uint32_t at = 0;
    for (int64_t place = 0; place < layer.steps * kBlock; ++place) {
      into[place].from = at;
      std::memcpy(to + at, places + place * wide, into[place].count * sizeof *to);
      at += into[place].count;
    }
  }
};

typedef uint16_t Shorts __attribute__((vector_size(2 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

// Where the inputs of a tile's outputs lie: a list for each element of the kernel on the map.
struct Fields {
  struct Part {
    const Lists::Run* run;  // of the first step
    const uint16_t* channels;
    uint32_t row;
  };
  std::vector<Part> parts;
  std::vector<int> first{0};  // [P + 1]

  Fields(const Lists& lists, const Tile& tile) {
    for (const Segment& s : tile.segments)
      for (int p = 0; p < s.length; ++p) {
        find(lists, s.sample, s.at + p);
        first.push_back(int(parts.size()));
      }
  }

  void find(const Lists& lists, int64_t sample, int64_t position) {
    const Layer& l = lists.layer;
    const int64_t top = position / l.out_width * l.stride_h - l.pad_h;
    const int64_t left = position % l.out_width * l.stride_w - l.pad_w;
    for (int64_t i = 0; i < l.kernel_h; ++i)
      for (int64_t j = 0; j < l.kernel_w; ++j) {
        const int64_t y = top + i * l.dilation_h, x = left + j * l.dilation_w;
        if (y < 0 || y >= l.height || x < 0 || x >= l.width) continue;
        const int64_t pixel = y * l.width + x;
        const int64_t block = sample * lists.blocks + pixel / Lists::kBlock;
        const int64_t run = block * l.steps * Lists::kBlock + pixel % Lists::kBlock;
        parts.push_back({lists.runs + run, lists.channels + lists.first[block],
                         uint32_t((i * l.kernel_w + j) * lists.wide)});
      }
  }

  // Rows of weights whose inputs spike for position p at step t; a few more are written behind.
  int64_t rows(int p, int64_t t, uint32_t* to) const {
    int64_t count = 0;
    for (int k = first[p]; k < first[p + 1]; ++k) {
      const Part& part = parts[k];
      const Lists::Run run = part.run[t * Lists::kBlock];
      const uint16_t* const from = part.channels + run.from;
      const uint32_t row = part.row;
      for (uint32_t at = 0; at < run.count; at += kLanes) {
        Shorts channels;
        std::memcpy(&channels, from + at, sizeof channels);
        const Words words = __builtin_convertvector(channels, Words) + row;
        std::memcpy(to + count + at, &words, sizeof words);
      }
      count += run.count;
    }
    return count;
  }
};

template <int Wide>
void sum_rows(const float* weights, int64_t stride, const uint32_t* row, const uint32_t* end,
              float* to) {
  constexpr int kSide = Wide >= 8 ? 1 : Wide >= 4 ? 2 : 4;
  F sums[kSide][Wide];
  clear(sums);
  const auto add = [&](F* sum, uint32_t r) {
    const float* const from = weights + r * stride;
#pragma GCC unroll 16
    for (int v = 0; v < Wide; ++v) sum[v] += F::load(from + v * kLanes);
  };
  for (; row + kSide <= end; row += kSide)
#pragma GCC unroll 4
    for (int k = 0; k < kSide; ++k) add(sums[k], row[k]);
  for (; row < end; ++row) add(sums[0], *row);
  store(sums, to);
}

using RowSum = void (*)(const float*, int64_t, const uint32_t*, const uint32_t*, float*);

template <int... Wide>
RowSum pick_rows(int vectors, std::integer_sequence<int, Wide...>) {
  static constexpr RowSum table[] = {sum_rows<Wide + 1>...};
  return table[vectors - 1];
}

struct Events {
  static constexpr int64_t kFloats = 1 << 14;  // sums of a tile, beside the weights in the cache
  const Layer& layer;
  const float* weights;  // [kernel, planes, in_channels, stride]
  int64_t stride, vectors, passes;
  Division division;

  explicit Events(const Layer& l)
      : layer(l),
        weights(reinterpret_cast<const float*>(l.entries)),
        stride((l.channels + 15) / 16 * 16),
        vectors((l.channels + kLanes - 1) / kLanes),
        passes((vectors + kVectors - 1) / kVectors),
        division(l, l.steps, lanes()) {
    // Few tiles: threads share the channels of one.
    if (division.tiles < 2 * l.threads)
      passes = std::min(vectors, std::max(passes, 2 * l.threads));
  }

  int lanes() const {
    const int64_t channels = (vectors + passes - 1) / passes * kLanes;
    return int(std::min<int64_t>(kMost, std::max(kFloats / channels, layer.steps)));
  }

  void run() const {
    const Lists lists(layer);
#pragma omp parallel for num_threads(layer.threads) schedule(dynamic)
    for (int64_t k = 0; k < division.tiles * passes; ++k) {
      const int64_t tile = k / passes, pass = k % passes;
      part(lists, Tile(layer, division.first(tile), division.first(tile + 1)),
           vectors * pass / passes, vectors * (pass + 1) / passes);
    }
  }

  // `own` [kLanes, wide] to `sums` [wide, lanes].
  static void turn(const float* own, int64_t wide, float* sums, int64_t lanes) {
    for (int64_t c = 0; c < wide; ++c) {
      alignas(64) float line[kLanes];
      for (int k = 0; k < kLanes; ++k) line[k] = own[k * wide + c];
      std::memcpy(sums + c * lanes, line, sizeof line);
    }
  }

  // Vectors first .. end of the channels of a tile.
  void part(const Lists& lists, const Tile& tile, int64_t first, int64_t end) const {
    const int64_t wide = (end - first) * kLanes;
    const int64_t lanes = (layer.steps * tile.count + kLanes - 1) / kLanes * kLanes;
    uint32_t* const rows = room<uint32_t>(lists.wide * layer.kernel() + kSlack);
    float* const sums = room<float>(wide * lanes + kMost);
    const RowSum sum =
        pick_rows(int(end - first), std::make_integer_sequence<int, kVectors>());
    const Fields fields(lists, tile);
    float* const own = room<float, 1>(kLanes * wide);  // of so many lanes, side by side
    int lane = 0;
    for (int64_t t = 0; t < layer.steps; ++t)
      for (int p = 0; p < tile.count; ++p) {
        const int64_t count = fields.rows(p, t, rows);
        sum(weights + first * kLanes, stride, rows, rows + count, own + lane % kLanes * wide);
        if (++lane % kLanes == 0) turn(own, wide, sums + lane - kLanes, lanes);
      }
    if (lane % kLanes) turn(own, wide, sums + lane / kLanes * kLanes, lanes);
    const Finish finish(layer);
    const int64_t last = std::min(layer.channels, end * kLanes);
    for (int64_t o = first * kLanes; o < last; ++o)
      finish.run(tile, o, sums + (o - first * kLanes) * lanes);
  }
};

}  // namespace
