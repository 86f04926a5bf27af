// What is done to single rows of activations: norms, rotary positions, gates.
#pragma once

#include <cmath>

#include "simd.h"

namespace millrace {

enum class Activation : int32_t { silu = 0, gelu_tanh = 1 };

inline float inverse_rms(const float* x, long n, float eps) {
    Floats squares = broadcast(0.0f);
    for (long i = 0; i < n; i += kLanes) {
        const Floats v = load<Floats>(x + i);
        squares += v * v;
    }
    return 1.0f / std::sqrt(sum(squares) / float(n) + eps);
}

// to = x / rms(x) * weight. n is a multiple of 16, here and below.
template <class T>
inline void rms_norm(T* to, const float* x, const float* weight, long n, float eps) {
    const float scale = inverse_rms(x, n, eps);
    for (long i = 0; i < n; i += kLanes)
        store_as(to + i, load<Floats>(x + i) * scale * load<Floats>(weight + i));
}

// x += y / rms(y) * weight
inline void add_rms_norm(float* x, const float* y, const float* weight, long n, float eps) {
    const float scale = inverse_rms(y, n, eps);
    for (long i = 0; i < n; i += kLanes)
        store(x + i, load<Floats>(x + i) + load<Floats>(y + i) * scale * load<Floats>(weight + i));
}

// Rotates the pairs (x[i], x[i + n/2]) of one head, as Llama does. cos and sin have n/2 entries.
inline void rotate(float* x, const float* cos, const float* sin, long n) {
    const long half = n / 2;
    for (long i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i] + a * sin[i];
    }
}

inline Floats gate(Activation activation, Floats x) {
    if (activation == Activation::silu) return x / (1.0f + exponential(-x));
    const Floats inner = 0.797884561f * (x + 0.044715f * x * x * x);
    return x - x / (1.0f + exponential(2.0f * inner));
}

}  // namespace millrace
