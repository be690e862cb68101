// Packed spikes and counts pooled, added and unpacked, byte by byte: eight steps at once.
//
// A count is a number of planes, its binary digits from the lowest; adding two is a ripple of full
// adders on bytes. The largest is that of spikes alone: their OR.
#pragma once

#include "deploy_tile.h"

namespace {

constexpr int kPlanes = 8;

// A line of counts, digit by digit.
struct Counts {
  std::vector<uint8_t> digit[kPlanes];
  int planes;

  Counts(int p, int64_t width) : planes(p) {
    for (int b = 0; b < p; ++b) digit[b].assign(width, 0);
  }

  // Adds the binary digit `b` of another line.
  void add(const uint8_t* other, int64_t width, int b) {
    carry.assign(other, other + width);
    for (; b < planes; ++b) {
      uint8_t* const mine = digit[b].data();
      uint8_t* const c = carry.data();
      for (int64_t i = 0; i < width; ++i) {
        const uint8_t both = mine[i] & c[i];
        mine[i] ^= c[i];
        c[i] = both;
      }
    }
  }

  std::vector<uint8_t> carry;
};

// As in deploy_engine.py: `in` [planes, outer, height, width] to `out` [out_planes, outer, ...].
struct Pool {
  const uint8_t* in;
  uint8_t* out;
  int64_t planes, out_planes, outer, height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t sum;  // else the largest, of one plane
  int64_t threads;

  void run() const {
    if (!sum && kernel_h == 2 && kernel_w == 2 && stride_h == 2 && stride_w == 2 && !pad_h &&
        !pad_w && dilation_h == 1 && dilation_w == 1)
      return halve();
#pragma omp parallel num_threads(threads)
    {
      Counts counts(int(out_planes), out_width);
      std::vector<uint8_t> line(out_width);
#pragma omp for schedule(static)
      for (int64_t k = 0; k < outer; ++k)
        for (int64_t oh = 0; oh < out_height; ++oh) window(k, oh, counts, line.data());
    }
  }

  // The commonest one: two bytes side by side are one number.
  void halve() const {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < outer; ++k)
      for (int64_t oh = 0; oh < out_height; ++oh) {
        const uint8_t* const above = in + (k * height + 2 * oh) * width;
        uint8_t* const to = out + (k * out_height + oh) * out_width;
        for (int64_t w = 0; w < out_width; ++w) {
          uint16_t a, b;
          std::memcpy(&a, above + 2 * w, 2);
          std::memcpy(&b, above + width + 2 * w, 2);
          a |= b;
          to[w] = uint8_t(a | a >> 8);
        }
      }
  }

  void window(int64_t k, int64_t oh, Counts& counts, uint8_t* line) const {
    for (int b = 0; b < out_planes; ++b)
      std::fill(counts.digit[b].begin(), counts.digit[b].end(), uint8_t(0));
    for (int64_t i = 0; i < kernel_h; ++i) {
      const int64_t row = oh * stride_h + i * dilation_h - pad_h;
      if (row < 0 || row >= height) continue;
      for (int64_t j = 0; j < kernel_w; ++j)
        for (int64_t b = 0; b < planes; ++b) {
          gather(in + ((b * outer + k) * height + row) * width, j * dilation_w - pad_w, line);
          if (sum)
            counts.add(line, out_width, int(b));
          else
            for (int64_t w = 0; w < out_width; ++w) counts.digit[0][w] |= line[w];
        }
    }
    for (int64_t b = 0; b < out_planes; ++b)
      std::memcpy(out + ((b * outer + k) * out_height + oh) * out_width, counts.digit[b].data(),
                  out_width);
  }

  void gather(const uint8_t* row, int64_t shift, uint8_t* line) const {
    const int64_t first = shift < 0 ? std::min(out_width, (-shift + stride_w - 1) / stride_w) : 0;
    const int64_t end = std::max(
        first, std::min(out_width, (width - shift + stride_w - 1) / stride_w));
    std::fill(line, line + first, uint8_t(0));
    if (stride_w == 2)
      for (int64_t w = first; w < end; ++w) line[w] = row[2 * w + shift];
    else
      for (int64_t w = first; w < end; ++w) line[w] = row[w * stride_w + shift];
    std::fill(line + end, line + out_width, uint8_t(0));
  }
};

// Bytes to real numbers: `in` [planes, G, size] to `out` [steps, size].
void unpack(const uint8_t* in, float* out, int64_t steps, int64_t planes, int64_t size, float scale,
            int64_t threads) {
  const int64_t groups = (steps + 7) / 8;
#pragma omp parallel for num_threads(threads) schedule(static) if (steps * size > 1 << 15)
  for (int64_t t = 0; t < steps; ++t) {
    float* const to = out + t * size;
    for (int64_t b = 0; b < planes; ++b) {
      const uint8_t* const from = in + (b * groups + t / 8) * size;
      const int shift = int(t & 7);
      if (b == 0)
        for (int64_t i = 0; i < size; ++i) to[i] = float(from[i] >> shift & 1);
      else
        for (int64_t i = 0; i < size; ++i) to[i] += float((from[i] >> shift & 1) << b);
    }
    if (scale != 1.0f)
      for (int64_t i = 0; i < size; ++i) to[i] *= scale;
  }
}

// Two counts added, `a` and `b` [planes, size] to `out` [out_planes, size].
struct Addition {
  const uint8_t* a;
  const uint8_t* b;
  uint8_t* out;
  int64_t a_planes, b_planes, out_planes, size;

  void run() const {
    constexpr int64_t kPart = 4096;
    for (int64_t from = 0; from < size; from += kPart) {
      const int64_t count = std::min(kPart, size - from);
      Counts counts(int(out_planes), count);
      for (int64_t k = 0; k < a_planes; ++k) counts.add(a + k * size + from, count, int(k));
      for (int64_t k = 0; k < b_planes; ++k) counts.add(b + k * size + from, count, int(k));
      for (int64_t k = 0; k < out_planes; ++k)
        std::memcpy(out + k * size + from, counts.digit[k].data(), count);
    }
  }
};

}  // namespace
