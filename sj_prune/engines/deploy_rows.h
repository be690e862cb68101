// The inputs of one tile, a row for every input channel and element of the kernel.
//
// Of spikes a row is T P bits; of real numbers T P floats. Both serve any kernel, stride, padding
// and dilation, so that the loops over weights know nothing of them.
#pragma once

#include "deploy_tile.h"

namespace {

// Bit `bit` of 64 bytes.
SJ_FN uint64_t bits_of(const uint8_t* from, int bit) {
#if defined(__AVX512BW__)
  return _mm512_test_epi8_mask(_mm512_loadu_si512(from), _mm512_set1_epi8(char(1 << bit)));
#elif defined(__AVX2__)
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
  const __m128i by = _mm_cvtsi32_si128(7 - bit);
  const uint32_t a = uint32_t(_mm256_movemask_epi8(_mm256_sll_epi16(low, by)));
  const uint32_t b = uint32_t(_mm256_movemask_epi8(_mm256_sll_epi16(high, by)));
  return a | uint64_t(b) << 32;
#else
  uint64_t found = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t word = 0;
    for (int k = 0; k < 8; ++k) word |= uint64_t(from[8 * i + k]) << (8 * k);
    word = (word >> bit) & 0x0101010101010101u;
    found |= ((word * 0x0102040810204080u) >> 56) << (8 * i);
  }
  return found;
#endif
}

// Bits written one field after the other into words that were 0.
SJ_FN void append(uint64_t* words, int words_count, int at, uint64_t bits) {
  const int word = at >> 6, shift = at & 63;
  words[word] |= bits << shift;
  if (shift && word + 1 < words_count) words[word + 1] |= bits >> (64 - shift);
}

// Copies of a few bytes at once; up to 32 too many, which the next copy or nobody reads.
SJ_FN void copy_loosely(uint8_t* to, const uint8_t* from, int count) {
  if (count <= 16)
    std::memcpy(to, from, 16);
  else
    for (int i = 0; i < count; i += 32) std::memcpy(to + i, from + i, 32);
}

// 64-bit words of a row of bits.
constexpr int words_of(int64_t lanes) { return int((lanes + 63) / 64); }

// Rows first .. end of channels (planes and channels counted together) as bits.
struct BitRows {
  static constexpr int kBatch = 16;  // bytes are read only when those of later rows are written
  const Layer& layer;
  const Padded<uint8_t>& input;

  // `words` [rows, words_of(T P)]
  void build(const Tile& tile, int64_t first, int64_t end, uint64_t* words) const {
    const int count = words_of(layer.steps * tile.count);
    const int64_t kernel = layer.kernel();
    std::vector<int64_t> from, offsets;
    for (const Segment& s : tile.lines)
      from.push_back(s.sample * layer.in_channels * input.plane + input.origin(layer, s.at));
    for (int64_t i = 0; i < layer.kernel_h; ++i)
      for (int64_t j = 0; j < layer.kernel_w; ++j) offsets.push_back(input.offset(layer, i, j));
    alignas(64) uint8_t lines[kBatch][kMost + 2 * kSlack] = {};
    for (int64_t c = first; c < end; ++c)
      for (int64_t e = 0; e < kernel; e += kBatch) {
        const int batch = int(std::min<int64_t>(kBatch, kernel - e));
        uint64_t* const rows = words + (c * kernel + e) * count;
        if (count > 1 && tile.count != 64) std::memset(rows, 0, batch * count * sizeof *rows);
        for (int64_t g = 0; g < layer.groups(); ++g) {
          const uint8_t* const base = source(c, g);
          for (int b = 0; b < batch; ++b)
            for (size_t k = 0; k < from.size(); ++k)
              copy_loosely(lines[b] + tile.lines[k].to, base + offsets[e + b] + from[k],
                           tile.lines[k].length);
          for (int b = 0; b < batch; ++b) spread(tile.count, lines[b], g, rows + b * count, count);
        }
      }
  }

  const uint8_t* source(int64_t c, int64_t g) const {
    const int64_t plane = c / layer.in_channels, channel = c % layer.in_channels;
    const int64_t image = (plane * layer.groups() + g) * layer.samples * layer.in_channels;
    return input.at + (image + channel) * input.plane;
  }

  // The bits of one line, step by step, into its row.
  void spread(int positions, const uint8_t* line, int64_t g, uint64_t* row, int count) const {
    const int last = int(std::min<int64_t>(8, layer.steps - 8 * g));
    if (positions == 64) {
      for (int t = 0; t < last; ++t) row[8 * g + t] = bits_of(line, t);
    } else if (count == 1) {
      const uint64_t used = (uint64_t(1) << positions) - 1;  // T P <= 64, and P < 64
      uint64_t word = g ? row[0] : 0;
      for (int t = 0; t < last; ++t) word |= (bits_of(line, t) & used) << ((8 * g + t) * positions);
      row[0] = word;
    } else {
      for (int t = 0; t < last; ++t)
        for (int p = 0; p < positions; p += 64) {
          const int left = positions - p;
          uint64_t bits = bits_of(line + p, t);
          if (left < 64) bits &= (uint64_t(1) << left) - 1;
          append(row, count, int(8 * g + t) * positions + p, bits);
        }
    }
  }
};

// The same of real numbers: `to` [rows, lanes], steps one after the other.
struct RealRows {
  const Layer& layer;
  const Padded<float>& input;

  void build(const Tile& tile, int64_t first, int64_t end, float* to, int64_t lanes) const {
    const int64_t sample = layer.in_channels * input.plane;
    for (int64_t c = first; c < end; ++c)
      for (int64_t i = 0; i < layer.kernel_h; ++i)
        for (int64_t j = 0; j < layer.kernel_w; ++j) {
          float* const row = to + ((c * layer.kernel_h + i) * layer.kernel_w + j) * lanes;
          const int64_t offset = c * input.plane + input.offset(layer, i, j);
          for (int64_t t = 0; t < layer.in_steps; ++t)
            for (const Segment& s : tile.lines) {
              const int64_t image = (t * layer.samples + s.sample) * sample;
              std::memcpy(row + t * tile.count + s.to,
                          input.at + image + offset + input.origin(layer, s.at),
                          s.length * sizeof(float));
            }
          for (int64_t k = layer.in_steps * tile.count; k < lanes; ++k) row[k] = 0;
        }
  }
};

}  // namespace
