// The CPU engine: loops over one variant of step.h. Built by cpp_engine.py, called through ctypes.
//
//   forward   x [T, N, C, M], v0 [N, C, M]  ->  spikes [T, N, C, M], v [N, C, M],
//             partials [N, C, K] (mean over time and map; the maximum over the map is that of the
//             time mean), and on request v_seq, h_seq, g_seq [T, N, C, M]
//   backward  gradients of spikes, v and v_seq -> gradients of x, v0 and (PLIF) of q;
//             H is recomputed from x and v0
//
// M is the size of the map. Channels-last tensors are [T, N, M, C] in memory. As many neighboring
// elements as fill a vector register (a block) go through all T steps at once: their potentials and
// sums stay in registers. Each (sample, channel) belongs to one thread and is summed in a fixed
// order: results do not depend on the number of threads.
// A library has one of the two passes, or compiling would take twice as long: SJ_BACKWARD tells.
#include "lif_block.h"
#if SJ_BACKWARD
#include "lif_backward.h"
#else
#include "lif_forward.h"
#endif

using std::int64_t;

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if !SJ_BACKWARD

// As struct.Struct packs them in cpp_engine.py.
struct ForwardArguments {
  const A* x;
  const A* v0;
  A* spikes;
  A* v;
  A* partials;
  A* v_seq;
  A* h_seq;
  A* g_seq;
  int64_t steps, samples, count, map, v0_stride, channels_last, hard, inverse;
  double threshold, reset, decay, alpha;
  int64_t threads;
};

template <typename N>
static void run(const ForwardArguments& a, const N& neuron) {
  const int64_t samples = a.samples, count = a.count, map = a.map;
  const int threads = int(a.threads);
  A* const partials = a.partials;
  const Forward<N> f{a.x,     a.v0,    a.spikes, a.v,         a.v_seq,    a.h_seq,
                     a.g_seq, a.steps, samples * count * map, a.v0_stride, neuron};
  const int64_t rows = samples * count;
  if (a.channels_last || map == 1) {
    const int64_t tiles = divide_up(count, kTile);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < samples * tiles; ++unit) {
      const int64_t first = unit % tiles * kTile;
      columns(f, unit / tiles, first, int(smaller(kTile, count - first)), count, map, partials);
    }
  } else if (map >= kTile || map % kLanes == 0) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) one_channel(f, row, map, partials);
  } else {
    const int64_t group = kTile / map;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < divide_up(rows, group); ++unit)
      some_channels(f, unit * group, int(smaller(group, rows - unit * group)), map, partials);
  }
}

extern "C" void sj_forward(const ForwardArguments* packed) {
  const ForwardArguments a = *packed;
  with_neuron({a.threshold, a.reset, a.decay, a.alpha}, a.hard, a.inverse,
              [&](const auto& neuron) { run(a, neuron); });
}

#else

// Any dense layout that all tensors share. `grad_q` has one entry a unit of kTile elements, to be
// summed by the caller in that order.
struct BackwardArguments {
  const A* grad_s;
  const A* grad_v;
  const A* grad_v_seq;
  const A* x;
  const A* v0;
  A* grad_x;
  A* grad_v0;
  double* grad_q;
  int64_t steps, elements, v0_stride, hard, inverse;
  double threshold, reset, decay, alpha;
  int64_t threads;
};

template <typename N>
static void run(const BackwardArguments& a, const N& neuron) {
  const int64_t elements = a.elements, units = divide_up(elements, kTile);
  const int threads = int(a.threads);
  const Backward<N> b{a.grad_s,  a.grad_v, a.grad_v_seq, a.x,         a.v0,  a.grad_x,
                      a.grad_v0, a.steps,  elements,     a.v0_stride, neuron};
#pragma omp parallel num_threads(threads)
  {
    V* const charges = new V[kWidth * size_t(a.steps) * (SJ_KIND == 2 ? 2 : 1)];
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      const int64_t at = unit * kTile;
      const double part = b.tile(at, int(smaller(kTile, elements - at)), charges);
      if (SJ_KIND == 2) a.grad_q[unit] = part;
    }
    delete[] charges;
  }
}

extern "C" void sj_backward(const BackwardArguments* packed) {
  const BackwardArguments a = *packed;
  with_neuron({a.threshold, a.reset, a.decay, a.alpha}, a.hard, a.inverse,
              [&](const auto& neuron) { run(a, neuron); });
}

#endif

extern "C" int64_t sj_tile() { return kTile; }
