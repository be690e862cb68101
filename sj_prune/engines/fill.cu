// Sets values to 0, in many tensors with one launch. What is there already is not written.
//
// The table of tensors is the kernels' argument, by value: no copy to the device, nothing to keep,
// and a launch can be captured in a CUDA graph. A block finds its tensor by a search.
using Long = long long;

constexpr int kThreads = 256;
constexpr int kWords = 4;  // words of 16 bytes a thread has in flight
constexpr int kTensors = 128;  // of one launch: an argument has at most 4 KB
constexpr int kTensorsOfRows = 96;

// Argument of sj_fill.
struct FillArguments {
  void* values[kTensors];
  const unsigned char* kept[kTensors];  // one byte a value, 0 or 1
  Long count[kTensors];
  int first[kTensors];  // block of a tensor
  unsigned char size[kTensors];  // bytes of a value
  int tensors;
};

// Argument of sj_put_rows: rows of tensors become 0, or what they were.
struct RowsArguments {
  char* values[kTensorsOfRows];
  const Long* index[kTensorsOfRows];   // the rows
  const char* source[kTensorsOfRows];  // what they become, one after another; null: 0
  unsigned rows[kTensorsOfRows];
  unsigned bytes[kTensorsOfRows];  // of a row
  int first[kTensorsOfRows];
  unsigned char word[kTensorsOfRows];  // bytes that a thread moves at once
  int tensors;
};

// The last tensor that begins at this block or before.
template <typename Arguments>
__device__ __forceinline__ int tensor_of(const Arguments& a, int block) {
  int low = 0, high = a.tensors;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (a.first[middle] <= block)
      low = middle;
    else
      high = middle;
  }
  return low;
}

template <int kBytes>
struct Word {};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<4> {
  using Type = unsigned;
};
template <>
struct Word<2> {
  using Type = unsigned short;
};

template <typename T>
__device__ __forceinline__ bool aligned(const T* pointer, int bytes) {
  return reinterpret_cast<unsigned long long>(pointer) % bytes == 0;
}

// One block's share of a tensor of values of type Bits.
template <typename Bits>
__device__ __forceinline__ void fill(Bits* values, const unsigned char* kept, Long count, Long block) {
  constexpr int kVec = 16 / sizeof(Bits);
  using Kept = typename Word<kVec>::Type;
  const Long start = block * kThreads * kWords;
  const bool wide = aligned(values, 16) && aligned(kept, kVec);
  const Long words = wide ? count / kVec : 0;
  uint4 found[kWords];
  Kept keeps[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const Long at = start + i * kThreads + threadIdx.x;
    if (at < words) {
      found[i] = reinterpret_cast<const uint4*>(values)[at];
      keeps[i] = reinterpret_cast<const Kept*>(kept)[at];
    }
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const Long at = start + i * kThreads + threadIdx.x;
    if (at >= words) continue;
    Bits before[kVec];
    unsigned char keep[kVec];
    memcpy(before, &found[i], 16);
    memcpy(keep, &keeps[i], kVec);
    bool written = false;
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      written = written || (!keep[e] && before[e] != 0);
      before[e] = keep[e] ? before[e] : Bits(0);
    }
    if (!written) continue;
    memcpy(&found[i], before, 16);
    reinterpret_cast<uint4*>(values)[at] = found[i];
  }
  // What no word of 16 bytes covers: the rest of a tensor, or all of one that is not aligned.
  const Long next = (start + kThreads * kWords) * kVec, end = next < count ? next : count;
  for (Long at = (wide && words > start ? words : start) * kVec + threadIdx.x; at < end;
       at += kThreads)
    if (!kept[at] && values[at] != 0) values[at] = 0;
}

extern "C" __global__ void __launch_bounds__(kThreads)
    sj_fill(const __grid_constant__ FillArguments a) {
  const int one = tensor_of(a, blockIdx.x);
  const Long block = blockIdx.x - a.first[one], count = a.count[one];
  const unsigned char* kept = a.kept[one];
  if (a.size[one] == 8)
    fill(static_cast<unsigned long long*>(a.values[one]), kept, count, block);
  else if (a.size[one] == 4)
    fill(static_cast<unsigned*>(a.values[one]), kept, count, block);
  else
    fill(static_cast<unsigned short*>(a.values[one]), kept, count, block);
}

// One block's share of the rows of a tensor, in words of type W.
template <typename W>
__device__ __forceinline__ void put(char* values, const Long* index, const char* source,
                                    unsigned rows, unsigned bytes, unsigned block) {
  const unsigned words = bytes / sizeof(W), all = rows * words;
  const unsigned start = block * kThreads * kWords;
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const unsigned at = start + i * kThreads + threadIdx.x;
    if (at >= all) return;
    const unsigned row = at / words;
    W* to = reinterpret_cast<W*>(values + index[row] * bytes) + (at - row * words);
    W value{};
    if (source) value = reinterpret_cast<const W*>(source)[at];
    *to = value;
  }
}

extern "C" __global__ void __launch_bounds__(kThreads)
    sj_put_rows(const __grid_constant__ RowsArguments a) {
  const int one = tensor_of(a, blockIdx.x);
  char* values = a.values[one];
  const char* source = a.source[one];
  const unsigned rows = a.rows[one], bytes = a.bytes[one], block = blockIdx.x - a.first[one];
  // The host counts blocks by the same words.
  const int word = a.word[one];
  if (word == 16)
    put<uint4>(values, a.index[one], source, rows, bytes, block);
  else if (word == 4)
    put<unsigned>(values, a.index[one], source, rows, bytes, block);
  else
    put<unsigned short>(values, a.index[one], source, rows, bytes, block);
}
