// What forward and backward of the CPU engine share: the variant's constants, and blocks.
#pragma once

#include "step.h"

#ifndef SJ_STATISTICS  // bits in the order of STATISTICS in activity.py
#define SJ_STATISTICS 0
#endif
#ifndef SJ_TYPE
#define SJ_TYPE float
#endif

using A = SJ_TYPE;
using std::int64_t;

namespace {

using V = sj::Lanes<A>;
constexpr int kLanes = V::kCount;
constexpr int kWidth = 4;   // blocks side by side
constexpr int kTile = 256;  // elements summed in the type of the computation
constexpr bool kRate = SJ_STATISTICS & 1, kPotential = SJ_STATISTICS & 2;
constexpr bool kCharge = SJ_STATISTICS & 4, kMean = SJ_STATISTICS & 8, kMax = SJ_STATISTICS & 16;
constexpr bool kDerivative = kMean || kMax;
constexpr int kNames = kRate + kPotential + kCharge + kMean + kMax;

// A block at `p`, or what is left of one: `count` elements and zeros.
template <bool kWhole>
SJ_FN V get(const A* p, int count) {
  return kWhole ? V::load(p) : V::load(p, count);
}

template <bool kWhole>
SJ_FN void put(A* p, int count, V value) {
  if (kWhole)
    value.store(p);
  else
    value.store(p, count);
}

}  // namespace
