// Sums of weights over the rows of one tile: the loops in which the time goes.
#pragma once

#include "deploy_rows.h"

namespace {

#if !defined(__AVX512F__)
// Vectors of all ones where a bit is set, by the bits of one vector's lanes.
struct Masks {
  static constexpr int kBits = kLanes < 8 ? kLanes : 8;
  alignas(64) int32_t lanes[1 << kBits][kBits];
  Masks() {
    for (int k = 0; k < 1 << kBits; ++k)
      for (int i = 0; i < kBits; ++i) lanes[k][i] = k >> i & 1 ? -1 : 0;
  }
};
const Masks masks;
#endif

// sum + weight in the lanes whose bits (of vector `v` of a row) are set.
SJ_FN F add_where(F sum, F weight, const uint8_t* row, int v) {
#if defined(__AVX512F__)
  __mmask16 bits;
  std::memcpy(&bits, row + 2 * v, sizeof bits);
  return F(_mm512_mask_add_ps(sum.raw, bits, sum.raw, weight.raw));
#else
  const int bits = kLanes == 8 ? row[v] : row[v / 2] >> (4 * (v & 1)) & 15;
  F::Mask mask;
  std::memcpy(&mask, masks.lanes[bits], sizeof mask);
  return sum + F(reinterpret_cast<F::Raw>(reinterpret_cast<F::Mask>(weight.raw) & mask));
#endif
}

struct Bits {
  const uint64_t* rows;
  int64_t stride;  // words

  struct Row {
    const uint8_t* at;
    SJ_MEMBER F add(F sum, F weight, int v) const { return add_where(sum, weight, at, v); }
  };
  SJ_MEMBER Row row(uint32_t k) const {
    return {reinterpret_cast<const uint8_t*>(rows + k * stride)};
  }
};

struct Reals {
  const float* rows;
  int64_t stride;  // floats

  struct Row {
    const float* at;
    SJ_MEMBER F add(F sum, F weight, int v) const {
      return sj::fused(weight, F::load(at + v * kLanes), sum);
    }
  };
  SJ_MEMBER Row row(uint32_t k) const { return {rows + k * stride}; }
};

// All weights of one output channel over `Wide` vectors. Few vectors would wait for each addition
// to end: then several weights are summed side by side.
template <int Wide, typename Rows>
void sum_weights(const Rows& rows, const Entry* from, const Entry* end, float* to) {
  constexpr int kSide = Wide >= 4 ? 1 : Wide == 3 ? 2 : 4 / Wide;
  F sums[kSide][Wide];
#pragma GCC unroll 16
  for (int k = 0; k < kSide; ++k)
#pragma GCC unroll 16
    for (int v = 0; v < Wide; ++v) sums[k][v] = F(0.0f);
  for (; from + kSide <= end; from += kSide)
#pragma GCC unroll 4
    for (int k = 0; k < kSide; ++k) {
      const F weight(from[k].weight);
      const auto row = rows.row(from[k].row);
#pragma GCC unroll 16
      for (int v = 0; v < Wide; ++v) sums[k][v] = row.add(sums[k][v], weight, v);
    }
  for (; from < end; ++from) {
    const F weight(from->weight);
    const auto row = rows.row(from->row);
#pragma GCC unroll 16
    for (int v = 0; v < Wide; ++v) sums[0][v] = row.add(sums[0][v], weight, v);
  }
#pragma GCC unroll 16
  for (int v = 0; v < Wide; ++v) {
    F sum = sums[0][v];
#pragma GCC unroll 4
    for (int k = 1; k < kSide; ++k) sum += sums[k][v];
    sum.store(to + v * kLanes);
  }
}

template <typename Rows>
using Sum = void (*)(const Rows&, const Entry*, const Entry*, float*);

template <typename Rows, int... Wide>
Sum<Rows> pick(int vectors, std::integer_sequence<int, Wide...>) {
  static constexpr Sum<Rows> table[] = {sum_weights<Wide + 1, Rows>...};
  return table[vectors - 1];
}

// The loop for so many vectors.
template <typename Rows>
Sum<Rows> sum_for(int vectors) {
  return pick<Rows>(vectors, std::make_integer_sequence<int, kVectors>());
}

}  // namespace
