// The CUDA engine: loops over one variant of step.h. Compiled by cupy_engine.py through NVRTC.
//
//   forward   x [T, N, C, M], v0 [N, C, M]  ->  spikes [T, N, C, M], v [N, C, M],
//             partials [N, C, K] (mean over time and map; the maximum over the map is that of the
//             time mean), and on request v_seq, h_seq, g_seq [T, N, C, M]
//   backward  gradients of spikes, v and v_seq -> gradients of x, v0 and (PLIF) of w;
//             H is recomputed from x and v0
//
// M is the size of the map; channels-last tensors are [T, N, M, C] in memory. x, spikes and their
// gradients are of the input's type SJ_TYPE; everything else and all arithmetic is float.
//
// One thread owns SJ_VEC neighboring elements over all T steps, so potentials live in registers and
// reach memory only where the caller asked for them. No atomics: sums are taken in an order that
// depends on shapes and device alone, so results repeat to the last bit.
//
// A variant is step.h's macros and
//   SJ_TYPE        float, Half or Bfloat16
//   SJ_VEC         elements a thread; it divides all sizes and alignments: there are no remainders
//   SJ_STORE       1: v_seq, 2: h_seq and g_seq (forward)
//   SJ_CHUNK       steps whose potentials the backward pass keeps in registers; 0 for the forward
//   SJ_GRADS       1: gradient of the spikes given, 2: of v_seq (backward)
#define SJ_DEVICE
#include "step.h"
#if SJ_CHUNK == 0
#include "cuda_forward.h"
#else
#include "cuda_backward.h"
#endif
