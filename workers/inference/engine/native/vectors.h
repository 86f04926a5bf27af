// Sixteen floats or ints as one value, in as many registers as the processor needs for them.
//
// GCC's and Clang's vector extensions compile for any processor. But GCC keeps a vector that is
// larger than a register in memory and computes it by elements, thirty times slower: so ours is made
// of parts that fit.
#pragma once

#include <cstdint>
#include <cstring>

// Sums live in registers only if nothing on their way is a call.
#define MILLRACE_INLINE inline __attribute__((always_inline))

namespace millrace {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

constexpr int kLanes = 16;
constexpr long kVectorBytes = 64;
constexpr int kParts = kVectorBytes / kRegisterBytes;
constexpr int kPartLanes = kLanes / kParts;

template <class Scalar>
struct Lanes {
    typedef Scalar Part __attribute__((vector_size(kRegisterBytes)));
    Part parts[kParts];

    MILLRACE_INLINE Scalar operator[](int i) const { return parts[i / kPartLanes][i % kPartLanes]; }
};

typedef Lanes<float> Floats;
typedef Lanes<int32_t> Ints;

template <class V, class PartOf>
MILLRACE_INLINE V make(const PartOf& part_of) {
    V v;
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) v.parts[i] = part_of(i);
    return v;
}

template <class V>
MILLRACE_INLINE V read(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
MILLRACE_INLINE V load(const void* from) {
    return make<V>([=](int i) __attribute__((always_inline)) {
        return read<typename V::Part>(static_cast<const char*>(from) + i * kRegisterBytes);
    });
}

MILLRACE_INLINE void store(float* to, const Floats& v) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) std::memcpy(to + i * kPartLanes, &v.parts[i], kRegisterBytes);
}

MILLRACE_INLINE Floats broadcast(float x) {
    return make<Floats>([=](int) __attribute__((always_inline)) { return x - Floats::Part{}; });
}

MILLRACE_INLINE Ints broadcast(int32_t x) {
    return make<Ints>([=](int) __attribute__((always_inline)) { return x - Ints::Part{}; });
}

#define MILLRACE_OPERATOR(V, S, op)                                              \
    MILLRACE_INLINE V operator op(V a, V b) {                                             \
        return make<V>([&](int i) __attribute__((always_inline)) { return a.parts[i] op b.parts[i]; });         \
    }                                                                            \
    MILLRACE_INLINE V operator op(V a, S b) { return a op broadcast(b); }                 \
    MILLRACE_INLINE V operator op(S a, V b) { return broadcast(a) op b; }                 \
    MILLRACE_INLINE V& operator op##=(V& a, V b) { return a = a op b; }
MILLRACE_OPERATOR(Floats, float, +)
MILLRACE_OPERATOR(Floats, float, -)
MILLRACE_OPERATOR(Floats, float, *)
MILLRACE_OPERATOR(Floats, float, /)
MILLRACE_OPERATOR(Ints, int32_t, +)
MILLRACE_OPERATOR(Ints, int32_t, &)
MILLRACE_OPERATOR(Ints, int32_t, <<)
MILLRACE_OPERATOR(Ints, int32_t, >>)
#undef MILLRACE_OPERATOR

MILLRACE_INLINE Floats operator-(Floats a) {
    return make<Floats>([&](int i) __attribute__((always_inline)) { return -a.parts[i]; });
}

// Comparisons: all bits of a lane are set where it is true.
#define MILLRACE_COMPARISON(V, S, op)                                            \
    MILLRACE_INLINE Ints operator op(V a, V b) {                                          \
        return make<Ints>([&](int i) __attribute__((always_inline)) { return a.parts[i] op b.parts[i]; });      \
    }                                                                            \
    MILLRACE_INLINE Ints operator op(V a, S b) { return a op broadcast(b); }
MILLRACE_COMPARISON(Floats, float, <)
MILLRACE_COMPARISON(Floats, float, >)
MILLRACE_COMPARISON(Floats, float, ==)
MILLRACE_COMPARISON(Ints, int32_t, <)
MILLRACE_COMPARISON(Ints, int32_t, >=)
#undef MILLRACE_COMPARISON

// a where the mask is set, else b.
MILLRACE_INLINE Floats select(Ints mask, Floats a, Floats b) {
    return make<Floats>([&](int i) __attribute__((always_inline)) { return mask.parts[i] ? a.parts[i] : b.parts[i]; });
}

MILLRACE_INLINE Floats maximum(Floats a, Floats b) { return select(a > b, a, b); }

MILLRACE_INLINE Floats as_floats(Ints v) {
    return make<Floats>([&](int i) __attribute__((always_inline)) { return (Floats::Part)v.parts[i]; });
}

MILLRACE_INLINE Ints as_ints(Floats v) {
    return make<Ints>([&](int i) __attribute__((always_inline)) { return (Ints::Part)v.parts[i]; });
}

// Of all lanes, two halves at a time.
template <class Join>
MILLRACE_INLINE float fold(Floats v, const Join& join) {
    float lanes[kLanes];
    store(lanes, v);
#pragma GCC unroll 4
    for (int half = kLanes / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = join(lanes[i], lanes[i + half]);
    return lanes[0];
}

MILLRACE_INLINE float sum(Floats v) {
    return fold(v, [](float a, float b) __attribute__((always_inline)) { return a + b; });
}

MILLRACE_INLINE float largest(Floats v) {
    return fold(v, [](float a, float b) __attribute__((always_inline)) { return a > b ? a : b; });
}

}  // namespace millrace
