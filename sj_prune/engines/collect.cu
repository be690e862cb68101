// Statistics of one pass join those of a layer: sums [C, K] += the samples of partials [R, C, K]
// that are finite, all C K values of them. One launch.
//
// Every block adds some rows of 32 columns and leaves their sum in `scratch`; the block that ends
// last joins these in order. A sum that is not finite tells of an overflow: then this block goes
// through the rows one by one. Results depend on shapes alone: the ticket, the only atomic here,
// says who is last and no more.

using Long = long long;

constexpr int kThreads = 256, kColumns = 32, kLanes = kThreads / kColumns;
constexpr int kUnroll = 8;  // loads in flight a thread

struct CollectArguments {  // its mirror: CollectArguments in collect.py
  const float* partials;   // [rows, columns]
  double* sums;            // [columns]
  Long* samples;           // one number each
  Long* overflowed;
  double* scratch;  // [gridDim.y, columns]
  unsigned* ticket; // 0 before and after
  Long rows, columns;
  Long count;  // samples
  Long each;   // samples a row is the sum of; the last one has what is left
};

__device__ __forceinline__ bool is_finite(double x) { return x - x == 0.0; }

// This block's rows of one column, those of the other lanes too; the result is in lane 0.
__device__ __forceinline__ double sum_of_rows(const CollectArguments& a, Long column, bool inside) {
  __shared__ double shared[kLanes][kColumns];
  const int lane = threadIdx.x / kColumns;
  const Long share = (a.rows + gridDim.y - 1) / gridDim.y, first = blockIdx.y * share;
  const Long last = first + share < a.rows ? first + share : a.rows;
  double sum = 0.0;
  for (Long row = first + lane; inside && row < last; row += kUnroll * kLanes) {
    float x[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) {
      const Long at = row + j * kLanes;
      x[j] = at < last ? a.partials[at * a.columns + column] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) sum += x[j];
  }
  shared[lane][threadIdx.x % kColumns] = sum;
  __syncthreads();
  sum = 0.0;
  for (int other = 0; other < kLanes; ++other) sum += shared[other][threadIdx.x % kColumns];
  return sum;
}

// Tells whether no other block is still at work.
__device__ __forceinline__ bool comes_last(unsigned* ticket) {
  __shared__ bool last;
  const unsigned blocks = gridDim.x * gridDim.y;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(ticket, blocks - 1) == blocks - 1;  // back to 0 then
  __syncthreads();
  __threadfence();
  return last;
}

// Tells every thread whether `condition` holds for all of them.
__device__ __forceinline__ bool for_all(bool condition) {
  __shared__ bool failed;
  if (threadIdx.x == 0) failed = false;
  __syncthreads();
  if (!condition) failed = true;
  __syncthreads();
  const bool holds = !failed;
  __syncthreads();
  return holds;
}

// Leaves the sums of the finite rows in the first row of `scratch`; returns how many samples.
__device__ Long sum_of_finite(const CollectArguments& a, volatile double* joined) {
  Long counted = 0;
  for (Long i = threadIdx.x; i < a.columns; i += kThreads) joined[i] = 0.0;
  for (Long row = 0; row < a.rows; ++row) {
    const float* const from = a.partials + row * a.columns;
    bool good = true;
    for (Long i = threadIdx.x; i < a.columns; i += kThreads) good = good && is_finite(from[i]);
    if (!for_all(good)) continue;
    for (Long i = threadIdx.x; i < a.columns; i += kThreads) joined[i] = joined[i] + from[i];
    counted += row + 1 < a.rows ? a.each : a.count - row * a.each;
  }
  return counted;
}

extern "C" __global__ void __launch_bounds__(kThreads) sj_collect(const CollectArguments a) {
  const Long column = static_cast<Long>(blockIdx.x) * kColumns + threadIdx.x % kColumns;
  const bool inside = column < a.columns;
  const double sum = sum_of_rows(a, column, inside);
  volatile double* const joined = a.scratch;  // what other blocks wrote
  if (inside && threadIdx.x < kColumns) joined[blockIdx.y * a.columns + column] = sum;
  if (!comes_last(a.ticket)) return;
  bool good = true;
  for (Long i = threadIdx.x; i < a.columns; i += kThreads) {
    double all = joined[i];
    for (unsigned part = 1; part < gridDim.y; ++part) all += joined[part * a.columns + i];
    joined[i] = all;
    good = good && is_finite(all);
  }
  const Long counted = for_all(good) ? a.count : sum_of_finite(a, joined);
  for (Long i = threadIdx.x; i < a.columns; i += kThreads) a.sums[i] += joined[i];
  if (threadIdx.x == 0) {
    *a.samples += counted;
    *a.overflowed += a.count - counted;
  }
}
