// What forward and backward of the CPU engine share: the variant's constants, and blocks.
#pragma once

#include <cstddef>

#include "step.h"

#ifndef SJ_BACKWARD  // 1: the library has the backward pass, 0: the forward pass
#define SJ_BACKWARD 0
#endif
#ifndef SJ_STORE  // 1: v_seq, 2: h_seq and g_seq (forward)
#define SJ_STORE 0
#endif
#ifndef SJ_GRADS  // 1: the gradient of the spikes is given, 2: that of v_seq (backward)
#define SJ_GRADS 0
#endif
#ifndef SJ_TYPE
#define SJ_TYPE float
#endif

using A = SJ_TYPE;
using std::int64_t;
using std::size_t;
using sj::is_maximum;
using sj::kNames;
using sj::kRows;
using sj::kSums;
using sj::sum_of;

namespace {

using V = sj::Lanes<A>;
constexpr int kLanes = V::kCount;
constexpr int kWidth = 4;   // blocks side by side
constexpr int kTile = 256;  // elements summed in the type of the computation
constexpr bool kStoreV = SJ_STORE & 1, kTrace = SJ_STORE & 2;
constexpr bool kSpikes = SJ_GRADS & 1, kSequence = SJ_GRADS & 2;

// A block at `p`, or what is left of one: `count` elements and zeros.
template <bool kWhole>
SJ_FN V get(const A* p, int count) {
  return kWhole ? V::load(p) : V::load(p, count);
}

SJ_FN int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls `run` with the neuron of these numbers (threshold, reset, decay, alpha): kinds of reset and
// decay are settled here, once a call, and not in the loops.
template <typename Run>
SJ_FN void with_neuron(const double (&numbers)[4], bool hard, bool inverse, Run run) {
  // Only a LIF node divides, and only the gradient of a reset differs by its kind.
  constexpr bool kLif = SJ_KIND == 1, kKinds = SJ_BACKWARD;
  const V threshold = A(numbers[0]), reset = A(numbers[1]);
  const V keep = hard ? A(0) : A(1), landing = hard ? reset : -threshold;
  const sj::Numbers<V> n{threshold, reset, A(numbers[2]), A(numbers[3]), keep, landing};
  if (kLif && inverse) {
    if (kKinds && !hard)
      run(sj::Neuron<V, kLif, !kKinds>{n});
    else
      run(sj::Neuron<V, kLif, true>{n});
  } else if (kKinds && !hard) {
    run(sj::Neuron<V, false, !kKinds>{n});
  } else {
    run(sj::Neuron<V, false, true>{n});
  }
}

template <bool kWhole>
SJ_FN void put(A* p, int count, V value) {
  if (kWhole)
    value.store(p);
  else
    value.store(p, count);
}

}  // namespace
