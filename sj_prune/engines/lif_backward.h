// The backward pass of the CPU engine: H anew from x and v0, then the gradients from the last step.
#pragma once

#include "lif_block.h"

namespace {

// The backward pass over elements that all tensors have at the same place.
template <typename N>
struct Backward {
  const A* grad_s;  // of the spikes, where kSpikes
  const A* grad_v;  // may be null
  const A* grad_v_seq;  // where kSequence
  const A* x;
  const A* v0;
  A* grad_x;
  A* grad_v0;  // null where nobody asks for it
  int64_t steps, stride, v0_stride;
  N neuron;

  // kWide blocks from `at`, or the first `count` elements of one; `charges` holds kWidth blocks a
  // step, for PLIF twice as many. Returns their part of dL/dq.
  template <bool kWhole, int kWide>
  SJ_MEMBER V blocks(int64_t at, int count, V* charges) const {
    const N n = neuron;
    V* const pulls = charges + kWidth * steps;
    V now[kWide], carry[kWide];
    for (int k = 0; k < kWide; ++k)
      now[k] = v0_stride ? get<kWhole>(v0 + at + k * kLanes, count) : V(v0[0]);
    int64_t from = at;
    for (int64_t t = 0; t < steps; ++t, from += stride) {
#pragma GCC unroll 8
      for (int k = 0; k < kWide; ++k) {
        const V input = get<kWhole>(x + from + k * kLanes, count);
        const V h = sj::charge(input, now[k], n);
        charges[t * kWide + k] = h;
        if (SJ_KIND == 2) pulls[t * kWide + k] = sj::pull(input, now[k], n);
        now[k] = sj::settle(h, sj::fire(h, n), n);
      }
    }
    for (int k = 0; k < kWide; ++k)
      carry[k] = grad_v ? get<kWhole>(grad_v + at + k * kLanes, count) : V(0);
    V grad_q = 0;
    for (int64_t t = steps - 1; t >= 0; --t) {
      from -= stride;
#pragma GCC unroll 8
      for (int k = 0; k < kWide; ++k) {
        const int64_t here = from + k * kLanes;
        if (kSequence) carry[k] += get<kWhole>(grad_v_seq + here, count);
        const V given = kSpikes ? get<kWhole>(grad_s + here, count) : V(0);
        const auto g = sj::unwind(given, carry[k], charges[t * kWide + k], n);
        put<kWhole>(grad_x + here, count, g.x);
        carry[k] = g.carry;
        if (SJ_KIND == 2) grad_q += g.h * pulls[t * kWide + k];
      }
    }
    if (grad_v0)
      for (int k = 0; k < kWide; ++k) put<kWhole>(grad_v0 + at + k * kLanes, count, carry[k]);
    return grad_q;
  }

  // `count` elements from `at`; returns their part of dL/dq.
  double tile(int64_t at, int count, V* charges) const {
    double grad_q = 0;
    int i = 0;
    for (; i + kWidth * kLanes <= count; i += kWidth * kLanes) {
      const V part = blocks<true, kWidth>(at + i, kLanes, charges);
      if (SJ_KIND == 2) grad_q += sj::total(part);
    }
    for (; i + kLanes <= count; i += kLanes) {
      const V part = blocks<true, 1>(at + i, kLanes, charges);
      if (SJ_KIND == 2) grad_q += sj::total(part);
    }
    if (i < count) {
      A part[kLanes];
      blocks<false, 1>(at + i, count - i, charges).store(part);
      if (SJ_KIND == 2)
        for (int j = 0; i + j < count; ++j) grad_q += part[j];
    }
    return grad_q;
  }
};

}  // namespace
