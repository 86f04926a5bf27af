// The two element types that weights and caches may have, as floats and in products.
//
// A processor with AVX512-BF16 multiplies pairs of bf16 in one instruction; elsewhere a pair costs
// two float products.
#pragma once

#include "vectors.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace millrace {

struct bf16 {
    uint16_t bits;
};

MILLRACE_INLINE float to_float(float x) { return x; }
MILLRACE_INLINE float to_float(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}

// Rounds to nearest, ties to even.
MILLRACE_INLINE uint16_t bf16_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
template <class T>
MILLRACE_INLINE T from_float(float x);
template <>
MILLRACE_INLINE float from_float<float>(float x) {
    return x;
}
template <>
MILLRACE_INLINE bf16 from_float<bf16>(float x) {
    return bf16{bf16_bits(x)};
}

MILLRACE_INLINE void store_as(float* to, Floats v) { store(to, v); }
MILLRACE_INLINE void store_as(bf16* to, Floats v) {
#if defined(__AVX512BF16__)
    __m256bh half = _mm512_cvtneps_pbh((__m512)v.parts[0]);
    std::memcpy(to, &half, sizeof half);
#else
    for (int i = 0; i < kLanes; ++i) to[i].bits = bf16_bits(v[i]);
#endif
}

MILLRACE_INLINE Floats load_as_floats(const float* from) { return load<Floats>(from); }
MILLRACE_INLINE Floats load_as_floats(const bf16* from) {
    typedef uint16_t Halves __attribute__((vector_size(kRegisterBytes / 2)));
    return as_floats(make<Ints>([=](int i) __attribute__((always_inline)) {
        return __builtin_convertvector(read<Halves>(from + i * kPartLanes), Ints::Part) << 16;
    }));
}

// exp, to about 2 units in the last place for x in [-87, 88]; clamped outside.
MILLRACE_INLINE Floats exponential(Floats x) {
    x = select(x < -87.0f, broadcast(-87.0f), x);
    x = select(x > 88.0f, broadcast(88.0f), x);
    const float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    Floats shifted = x * 1.44269504f + round_magic;
    Floats n = shifted - round_magic;
    Floats r = x - n * 0.693145752f - n * 1.42860677e-6f;  // ln 2 in two parts
    Floats p = broadcast(1.0f / 720);
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return as_floats(as_ints(p) + (as_ints(shifted) << 23));
}

// One "unit" is what a 64-byte vector holds for each of its 16 lanes: one float or two bf16.
template <class T>
struct Unit;

template <>
struct Unit<float> {
    static constexpr int size = 1;
    typedef Floats Vector;
    typedef float Scalar;
    static MILLRACE_INLINE Floats multiply_add(Floats acc, Vector v, Scalar s) { return acc + v * s; }
};

template <>
struct Unit<bf16> {
    static constexpr int size = 2;
    typedef Ints Vector;
    typedef int32_t Scalar;
    static MILLRACE_INLINE Floats multiply_add(Floats acc, Vector v, Scalar s) {
#if defined(__AVX512BF16__)
        return {{(Floats::Part)_mm512_dpbf16_ps((__m512)acc.parts[0], (__m512bh)v.parts[0],
                                                (__m512bh)_mm512_set1_epi32(s))}};
#else
        float low = to_float(bf16{uint16_t(uint32_t(s) & 0xffff)});
        float high = to_float(bf16{uint16_t(uint32_t(s) >> 16)});
        return acc + as_floats(v << 16) * low + as_floats(v & int32_t(0xffff0000)) * high;
#endif
    }
};

template <class T>
MILLRACE_INLINE typename Unit<T>::Scalar load_unit(const T* from) {
    return read<typename Unit<T>::Scalar>(from);
}

}  // namespace millrace
