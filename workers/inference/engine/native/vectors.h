// Sixteen floats or ints as one value, in as many registers as the processor needs for them.
//
// GCC's and Clang's vector extensions compile for any processor. But GCC keeps a vector that is
// larger than a register in memory and computes it by elements, thirty times slower: so ours is made
// of parts that fit.
#pragma once

#include <cstdint>
#include <cstring>

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

    Scalar operator[](int i) const { return parts[i / kPartLanes][i % kPartLanes]; }
};

typedef Lanes<float> Floats;
typedef Lanes<int32_t> Ints;

template <class V, class PartOf>
inline __attribute__((always_inline)) V make(const PartOf& part_of) {
    V v;
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) v.parts[i] = part_of(i);
    return v;
}

template <class V>
inline V read(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
inline V load(const void* from) {
    return make<V>([=](int i) {
        return read<typename V::Part>(static_cast<const char*>(from) + i * kRegisterBytes);
    });
}

inline void store(float* to, const Floats& v) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) std::memcpy(to + i * kPartLanes, &v.parts[i], kRegisterBytes);
}

inline Floats broadcast(float x) {
    return make<Floats>([=](int) { return x - Floats::Part{}; });
}

inline Ints broadcast(int32_t x) {
    return make<Ints>([=](int) { return x - Ints::Part{}; });
}

#define MILLRACE_OPERATOR(V, S, op)                                              \
    inline V operator op(V a, V b) {                                             \
        return make<V>([&](int i) { return a.parts[i] op b.parts[i]; });         \
    }                                                                            \
    inline V operator op(V a, S b) { return a op broadcast(b); }                 \
    inline V operator op(S a, V b) { return broadcast(a) op b; }                 \
    inline V& operator op##=(V& a, V b) { return a = a op b; }
MILLRACE_OPERATOR(Floats, float, +)
MILLRACE_OPERATOR(Floats, float, -)
MILLRACE_OPERATOR(Floats, float, *)
MILLRACE_OPERATOR(Floats, float, /)
MILLRACE_OPERATOR(Ints, int32_t, +)
MILLRACE_OPERATOR(Ints, int32_t, &)
MILLRACE_OPERATOR(Ints, int32_t, <<)
MILLRACE_OPERATOR(Ints, int32_t, >>)
#undef MILLRACE_OPERATOR

inline Floats operator-(Floats a) {
    return make<Floats>([&](int i) { return -a.parts[i]; });
}

// Comparisons: all bits of a lane are set where it is true.
#define MILLRACE_COMPARISON(V, S, op)                                            \
    inline Ints operator op(V a, V b) {                                          \
        return make<Ints>([&](int i) { return a.parts[i] op b.parts[i]; });      \
    }                                                                            \
    inline Ints operator op(V a, S b) { return a op broadcast(b); }
MILLRACE_COMPARISON(Floats, float, <)
MILLRACE_COMPARISON(Floats, float, >)
MILLRACE_COMPARISON(Floats, float, ==)
MILLRACE_COMPARISON(Ints, int32_t, <)
MILLRACE_COMPARISON(Ints, int32_t, >=)
#undef MILLRACE_COMPARISON

// a where the mask is set, else b.
inline Floats select(Ints mask, Floats a, Floats b) {
    return make<Floats>([&](int i) { return mask.parts[i] ? a.parts[i] : b.parts[i]; });
}

inline Floats maximum(Floats a, Floats b) { return select(a > b, a, b); }

inline Floats as_floats(Ints v) {
    return make<Floats>([&](int i) { return (Floats::Part)v.parts[i]; });
}

inline Ints as_ints(Floats v) {
    return make<Ints>([&](int i) { return (Ints::Part)v.parts[i]; });
}

// Of all lanes, two halves at a time.
template <class Join>
inline float fold(Floats v, const Join& join) {
    float lanes[kLanes];
    store(lanes, v);
#pragma GCC unroll 4
    for (int half = kLanes / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = join(lanes[i], lanes[i + half]);
    return lanes[0];
}

inline float sum(Floats v) {
    return fold(v, [](float a, float b) { return a + b; });
}

inline float largest(Floats v) {
    return fold(v, [](float a, float b) { return a > b ? a : b; });
}

}  // namespace millrace
