// Numbers of the CUDA engine: types of input and output, and how they move.
#pragma once

using Long = long long;
using Neuron = sj::Neuron<float>;

// ---- types of input and output -----------------------------------------------------------------
// As bit patterns, without CUDA's headers, which NVRTC may not find on a user's machine.

struct Half {
  unsigned short bits;
};
struct Bfloat16 {
  unsigned short bits;
};

SJ_FN float widen(float x) { return x; }
SJ_FN float widen(Bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
SJ_FN void narrow(float x, float& out) { out = x; }

#ifdef __CUDACC__
SJ_FN float widen(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
SJ_FN void narrow(float x, Half& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x)); }
#else  // run on the host by the tests, which define these
float widen(Half x);
void narrow(float x, Half& out);
#endif

SJ_FN void narrow(float x, Bfloat16& out) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
#else
  // Round to nearest even; a nan stays one.
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  out.bits = static_cast<unsigned short>(x == x ? rounded : 0x7fffu);
#endif
}

using Io = SJ_TYPE;

// Stores of one word. As a plain assignment the compiler splits some of the wide ones (seen).
#ifdef __CUDACC__
SJ_FN void put(uint4* to, uint4 w) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.x), "r"(w.y), "r"(w.z),
               "r"(w.w)
               : "memory");
}
SJ_FN void put(uint2* to, uint2 w) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(w.x), "r"(w.y) : "memory");
}
#else
SJ_FN void put(uint4* to, uint4 word) { *to = word; }
SJ_FN void put(uint2* to, uint2 word) { *to = word; }
#endif
SJ_FN void put(unsigned* to, unsigned word) { *to = word; }
SJ_FN void put(unsigned short* to, unsigned short word) { *to = word; }

// SJ_VEC neighboring elements; they move in words of at most 16 bytes.
template <typename T>
struct Pack {
  T at[SJ_VEC];
};

template <int kBytes>
struct Words {
  using Word = uint4;
};
template <>
struct Words<8> {
  using Word = uint2;
};
template <>
struct Words<4> {
  using Word = unsigned;
};
template <>
struct Words<2> {
  using Word = unsigned short;
};

template <typename T>
SJ_FN Pack<T> load(const T* from) {
  using Word = typename Words<sizeof(Pack<T>)>::Word;
  constexpr int kWords = sizeof(Pack<T>) / sizeof(Word);
  Word words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Word*>(from)[i];
  Pack<T> pack;
  memcpy(&pack, words, sizeof pack);
  return pack;
}

template <typename T>
SJ_FN void store(T* to, const Pack<T>& pack) {
  using Word = typename Words<sizeof(Pack<T>)>::Word;
  constexpr int kWords = sizeof(Pack<T>) / sizeof(Word);
  Word words[kWords];
  memcpy(words, &pack, sizeof pack);
#pragma unroll
  for (int i = 0; i < kWords; ++i) put(reinterpret_cast<Word*>(to) + i, words[i]);
}

// Initial potentials of the elements at ..at + SJ_VEC; where `each` is 0, all are one number.
SJ_FN Pack<float> initial(const float* v0, int each, Long at) {
  if (each) return load(v0 + at);
  Pack<float> v;
#pragma unroll
  for (int e = 0; e < SJ_VEC; ++e) v.at[e] = *v0;
  return v;
}

constexpr int kWarp = 32;
