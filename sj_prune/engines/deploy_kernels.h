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

#if defined(__AVX512F__)
// The same for vectors 2 `pair` and 2 `pair` + 1. Three pairs of eight get their masks by testing
// bits, the others through a general register: the two ways wait for different parts of the
// processor (on Zen 4, 0.42 ns a vector in place of 0.50 for either way alone).
SJ_FN void add_pair_where(F* sums, F weight, const uint8_t* row, int pair) {
  if (pair % 8 < 6 && pair % 2 == 0) {
    int32_t bits;
    std::memcpy(&bits, row + 4 * pair, sizeof bits);
    const __m512i all = _mm512_set1_epi32(bits);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_sllv_epi32(_mm512_set1_epi32(1), lane);
    F& a = sums[2 * pair];
    F& b = sums[2 * pair + 1];
    a = F(_mm512_mask_add_ps(a.raw, _mm512_test_epi32_mask(all, low), a.raw, weight.raw));
    const __m512i high = _mm512_slli_epi32(low, 16);
    b = F(_mm512_mask_add_ps(b.raw, _mm512_test_epi32_mask(all, high), b.raw, weight.raw));
  } else {
    sums[2 * pair] = add_where(sums[2 * pair], weight, row, 2 * pair);
    sums[2 * pair + 1] = add_where(sums[2 * pair + 1], weight, row, 2 * pair + 1);
  }
}
#endif

struct Bits {
  const uint64_t* rows;
  int64_t stride;  // words

  template <int Wide>
  SJ_MEMBER void add(F* sums, F weight, uint32_t k) const {
    const uint8_t* const row = reinterpret_cast<const uint8_t*>(rows + k * stride);
    int v = 0;
#if defined(__AVX512F__)
#pragma GCC unroll 16
    for (; v + 1 < Wide; v += 2) add_pair_where(sums, weight, row, v / 2);
#endif
#pragma GCC unroll 16
    for (; v < Wide; ++v) sums[v] = add_where(sums[v], weight, row, v);
  }
};

struct Reals {
  const float* rows;
  int64_t stride;  // floats

  template <int Wide>
  SJ_MEMBER void add(F* sums, F weight, uint32_t k) const {
    const float* const row = rows + k * stride;
#pragma GCC unroll 16
    for (int v = 0; v < Wide; ++v) sums[v] = sj::fused(weight, F::load(row + v * kLanes), sums[v]);
  }
};

// All weights of one output channel over `Wide` vectors. Few vectors would wait for each addition
// to end: then several weights are summed side by side.
template <int Wide, typename Rows>
void sum_weights(const Rows& rows, const Entry* from, const Entry* end, float* to) {
  constexpr int kSide = Wide >= 4 ? 1 : Wide == 3 ? 2 : 4 / Wide;
  F sums[kSide][Wide];
  clear(sums);
  for (; from + kSide <= end; from += kSide)
#pragma GCC unroll 4
    for (int k = 0; k < kSide; ++k)
      rows.template add<Wide>(sums[k], F(from[k].weight), from[k].row);
  for (; from < end; ++from) rows.template add<Wide>(sums[0], F(from->weight), from->row);
  store(sums, to);
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
