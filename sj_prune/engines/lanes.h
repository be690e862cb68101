// Lanes<A>: as many numbers as one vector register of the target holds, for step.h on a CPU.
//
// Written with the compilers' own vector types (g++ and clang, any processor); the only
// intrinsics are the fused multiply-adds that plain code must not contract to, where there are any,
// as builtins where the compiler has them: half of the time of compiling went into <immintrin.h>.
// Partial loads and stores serve the end of a tensor.
#pragma once

#ifdef __has_builtin
#define SJ_HAS(name) __has_builtin(name)
#else
#define SJ_HAS(name) 0
#endif

#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) && SJ_HAS(__builtin_ia32_vfmaddps512_mask)
#define SJ_FUSED(a, b, c) __builtin_ia32_vfmaddps512_mask(a, b, c, 0xFFFF, 4)  // as rounding is set
#elif !defined(__AVX512F__) && defined(__FMA__) && SJ_HAS(__builtin_ia32_vfmaddps256)
#define SJ_FUSED(a, b, c) __builtin_ia32_vfmaddps256(a, b, c)
#elif defined(__AVX512F__)
#include <immintrin.h>
#define SJ_FUSED(a, b, c) _mm512_fmadd_ps(a, b, c)
#elif defined(__FMA__)
#include <immintrin.h>
#define SJ_FUSED(a, b, c) _mm256_fmadd_ps(a, b, c)
#elif defined(__ARM_FEATURE_FMA) && defined(__aarch64__)
#include <arm_neon.h>
#define SJ_FUSED(a, b, c) vfmaq_f32(c, a, b)
#endif

namespace sj {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;  // SSE2, NEON; elsewhere the compiler takes it apart
#endif

// A register of numbers, and of as wide integers, in which comparisons set all bits.
template <typename A>
struct Register;
template <>
struct Register<float> {
  using Int = std::int32_t;
  typedef float Raw __attribute__((vector_size(kBytes)));
  typedef std::int32_t Mask __attribute__((vector_size(kBytes)));
};
template <>
struct Register<double> {
  using Int = std::int64_t;
  typedef double Raw __attribute__((vector_size(kBytes)));
  typedef std::int64_t Mask __attribute__((vector_size(kBytes)));
};

template <typename A>
struct Lanes {
  using Int = typename Register<A>::Int;
  using Raw = typename Register<A>::Raw;
  using Mask = typename Register<A>::Mask;
  static constexpr int kCount = kBytes / sizeof(A);

  Raw raw;

  Lanes() = default;
  SJ_MEMBER Lanes(A value) : raw(value - Raw{}) {}
  SJ_MEMBER explicit Lanes(Raw r) : raw(r) {}

  SJ_MEMBER static Lanes load(const A* from) {
    Lanes out;
    std::memcpy(&out.raw, from, sizeof out.raw);
    return out;
  }
  SJ_MEMBER void store(A* to) const { std::memcpy(to, &raw, sizeof raw); }

  // The first `count` lanes; the others are 0.
  static Lanes load(const A* from, int count) {
    A values[kCount] = {};
    for (int i = 0; i < count; ++i) values[i] = from[i];
    return load(values);
  }
  void store(A* to, int count) const {
    A values[kCount];
    store(values);
    for (int i = 0; i < count; ++i) to[i] = values[i];
  }

  SJ_MEMBER friend Lanes operator+(Lanes a, Lanes b) { return Lanes(a.raw + b.raw); }
  SJ_MEMBER friend Lanes operator-(Lanes a, Lanes b) { return Lanes(a.raw - b.raw); }
  SJ_MEMBER friend Lanes operator*(Lanes a, Lanes b) { return Lanes(a.raw * b.raw); }
  SJ_MEMBER friend Lanes operator/(Lanes a, Lanes b) { return Lanes(a.raw / b.raw); }
  SJ_MEMBER friend Lanes operator-(Lanes a) { return Lanes(-a.raw); }
  SJ_MEMBER friend Mask operator>=(Lanes a, Lanes b) { return a.raw >= b.raw; }
  SJ_MEMBER friend Mask operator>(Lanes a, Lanes b) { return a.raw > b.raw; }
  SJ_MEMBER friend Mask operator<(Lanes a, Lanes b) { return a.raw < b.raw; }
  SJ_MEMBER friend Mask operator!=(Lanes a, Lanes b) { return a.raw != b.raw; }
  SJ_MEMBER Lanes& operator+=(Lanes other) { return *this = *this + other; }
};

// Where `mask` is set `a`, else `b`.
template <typename A>
SJ_FN Lanes<A> select(typename Lanes<A>::Mask mask, Lanes<A> a, Lanes<A> b) {
  return Lanes<A>(mask ? a.raw : b.raw);
}

template <typename A>
SJ_FN Lanes<A> absolute(Lanes<A> x) {
  using Int = typename Lanes<A>::Int;
  using Mask = typename Lanes<A>::Mask;
  constexpr Int sign = static_cast<Int>(std::uint64_t(1) << (8 * sizeof(A) - 1));
  return Lanes<A>(
      reinterpret_cast<typename Lanes<A>::Raw>(reinterpret_cast<Mask>(x.raw) & ~sign));
}

template <typename A>
SJ_FN Lanes<A> minus_absolute(Lanes<A> x) {
  using Int = typename Lanes<A>::Int;
  using Mask = typename Lanes<A>::Mask;
  constexpr Int sign = static_cast<Int>(std::uint64_t(1) << (8 * sizeof(A) - 1));
  return Lanes<A>(reinterpret_cast<typename Lanes<A>::Raw>(reinterpret_cast<Mask>(x.raw) | sign));
}

// a b + c, rounded once where the processor can.
#ifdef SJ_FUSED
SJ_FN Lanes<float> fused(Lanes<float> a, Lanes<float> b, Lanes<float> c) {
  return Lanes<float>(SJ_FUSED(a.raw, b.raw, c.raw));
}
#else
SJ_FN Lanes<float> fused(Lanes<float> a, Lanes<float> b, Lanes<float> c) { return a * b + c; }
#endif
SJ_FN Lanes<double> fused(Lanes<double> a, Lanes<double> b, Lanes<double> c) { return a * b + c; }

// p 2^n of a normal result, n a whole number that came as 1.5 * 2^23 + n: its last bits are n.
SJ_FN Lanes<float> raise(Lanes<float> p, Lanes<float> n) {
  using Raw = Lanes<float>::Raw;
  using Mask = Lanes<float>::Mask;
  const Mask exponent = reinterpret_cast<Mask>(n.raw) << 23;
  return Lanes<float>(reinterpret_cast<Raw>(reinterpret_cast<Mask>(p.raw) + exponent));
}

SJ_FN Lanes<double> exponential(Lanes<double> x) {
  for (int i = 0; i < Lanes<double>::kCount; ++i) x.raw[i] = __builtin_exp(x.raw[i]);
  return x;
}

// The sum and the largest (of numbers) of the lanes, always in the same order.
template <typename A>
SJ_FN A total(Lanes<A> x) {
  A values[Lanes<A>::kCount];
  x.store(values);
  for (int half = Lanes<A>::kCount / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

template <typename A>
SJ_FN A largest(Lanes<A> x) {
  A values[Lanes<A>::kCount];
  x.store(values);
  for (int half = Lanes<A>::kCount / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      values[i] = values[i] > values[i + half] ? values[i] : values[i + half];
  return values[0];
}

}  // namespace sj
