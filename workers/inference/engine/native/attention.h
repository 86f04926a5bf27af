// Attention over a paged KV cache.
//
// A page holds kPage tokens of every KV head. Of one head, keys are [head_dim / unit] vectors whose
// lanes are the tokens, so that scores of 16 tokens come out side by side; values are
// [kPage / unit][head_dim / 16] vectors whose lanes are dimensions.
#pragma once

#include "rows.h"
#include "simd.h"

namespace millrace {

constexpr int kPage = 16;     // tokens
constexpr int kMaxRows = 6;   // query rows that read a key together
constexpr int kSpan = 4;      // pages between two rescalings of the running sums
constexpr int kMaxHeadDim = 256;

template <class T>
struct PagedCache {
    T* keys;
    T* values;
    long head_dim, num_kv_heads;

    long head_size() const { return kPage * head_dim; }
    long offset(int page, long head) const { return (page * num_kv_heads + head) * head_size(); }
    const T* key_page(int page, long head) const { return keys + offset(page, head); }
    const T* value_page(int page, long head) const { return values + offset(page, head); }

    void write(int page, int token, long head, const float* key, const float* value) {
        constexpr int unit = Unit<T>::size;
        T* k = keys + offset(page, head) + token * unit;
        T* v = values + offset(page, head) + (token / unit) * unit * head_dim + token % unit;
        const bool opens_pair = unit == 2 && token % 2 == 0;
        for (long d = 0; d < head_dim; ++d) {
            k[(d / unit) * kPage * unit + d % unit] = from_float<T>(key[d]);
            v[d * unit] = from_float<T>(value[d]);
            // What an earlier tenant left may be NaN, which no weight of zero would silence.
            if (opens_pair) v[d * unit + 1] = from_float<T>(0.0f);
        }
    }
};

// Query rows of one KV head. Row r sees the tokens first[r] <= token < last[r].
template <class T>
struct QueryRows {
    const T* queries;  // [rows, head_dim]
    int first[kMaxRows], last[kMaxRows];
    const int32_t* pages;
    long head;
    float scale;
};

template <class T, int R>
inline void score_span(const QueryRows<T>& rows, const PagedCache<T>& cache, int page, int last_page,
                       Floats (&scores)[R][kSpan]) {
    typedef typename Unit<T>::Vector Vector;
    const T* keys[kSpan];
    for (int b = 0; b < kSpan; ++b)
        keys[b] = cache.key_page(rows.pages[page + b < last_page ? page + b : page], rows.head);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int b = 0; b < kSpan; ++b) scores[r][b] = broadcast(0.0f);
    const long num_units = cache.head_dim / Unit<T>::size;
    for (long u = 0; u < num_units; ++u) {
        Vector k[kSpan];
#pragma GCC unroll 4
        for (int b = 0; b < kSpan; ++b)
            k[b] = load<Vector>(keys[b] + u * kPage * Unit<T>::size);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const auto q = load_unit(rows.queries + r * cache.head_dim + u * Unit<T>::size);
#pragma GCC unroll 4
            for (int b = 0; b < kSpan; ++b)
                scores[r][b] = Unit<T>::multiply_add(scores[r][b], k[b], q);
        }
    }
}

// Turns one row's scores into weights relative to the row's running maximum. Returns the factor by
// which earlier sums of the row shrink.
inline float weigh(Floats (&scores)[kSpan], float scale, int token, int first, int last,
                   float& running_max, float& running_sum) {
    static const int32_t numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Ints lanes = load<Ints>(numbers);
    const Floats hidden = broadcast(-INFINITY);
    Floats top = hidden;
    for (int b = 0; b < kSpan; ++b) {
        const Ints tokens = lanes + (token + b * kPage);
        scores[b] = select((tokens >= first) & (tokens < last), scores[b] * scale, hidden);
        top = maximum(top, scores[b]);
    }
    const float new_max = std::fmax(running_max, largest(top));
    if (new_max == -INFINITY) {
        for (int b = 0; b < kSpan; ++b) scores[b] = broadcast(0.0f);
        return 1.0f;
    }
    Floats total = broadcast(0.0f);
    for (int b = 0; b < kSpan; ++b) {
        scores[b] = select(scores[b] == hidden, broadcast(0.0f), exponential(scores[b] - new_max));
        total += scores[b];
    }
    const float shrink = std::exp(running_max - new_max);
    running_sum = running_sum * shrink + sum(total);
    running_max = new_max;
    return shrink;
}

template <class T, int R, int C>
inline void add_values(const QueryRows<T>& rows, const PagedCache<T>& cache, int page, int num_tokens,
                       const T (&weights)[R][kSpan * kPage], const float (&shrink)[R], long column,
                       float* out) {
    typedef typename Unit<T>::Vector Vector;
    constexpr int unit = Unit<T>::size;
    Floats sums[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
            sums[r][c] = load<Floats>(out + r * cache.head_dim + column + c * kLanes) * shrink[r];
    for (int begin = 0; begin < num_tokens; begin += kPage, ++page) {
        const T* values = cache.value_page(rows.pages[page], rows.head) + column * unit;
        const int end = num_tokens - begin < kPage ? num_tokens - begin : kPage;
        for (int t = 0; t < end; t += unit, values += unit * cache.head_dim) {
            Vector v[C];
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) v[c] = load<Vector>(values + c * kLanes * unit);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const auto w = load_unit(&weights[r][begin + t]);
#pragma GCC unroll 4
                for (int c = 0; c < C; ++c)
                    sums[r][c] = Unit<T>::multiply_add(sums[r][c], v[c], w);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
            store(out + r * cache.head_dim + column + c * kLanes, sums[r][c]);
}

// out [R, head_dim]. One pass over the keys with a running softmax (Milakov and Gimelshein, 2018).
template <class T, int R>
void attend_rows(const QueryRows<T>& rows, const PagedCache<T>& cache, float* out) {
    float running_max[R], running_sum[R], shrink[R];
    int first = rows.first[0], last = rows.last[0];
    for (int r = 0; r < R; ++r) {
        running_max[r] = -INFINITY;
        running_sum[r] = 0.0f;
        first = rows.first[r] < first ? rows.first[r] : first;
        last = rows.last[r] > last ? rows.last[r] : last;
    }
    for (long i = 0; i < R * cache.head_dim; i += kLanes) store(out + i, broadcast(0.0f));
    const int last_page = (last + kPage - 1) / kPage;
    for (int page = first / kPage; page < last_page; page += kSpan) {
        Floats scores[R][kSpan];
        score_span<T, R>(rows, cache, page, last_page, scores);
        T weights[R][kSpan * kPage];
        for (int r = 0; r < R; ++r) {
            shrink[r] = weigh(scores[r], rows.scale, page * kPage, rows.first[r], rows.last[r],
                              running_max[r], running_sum[r]);
            for (int b = 0; b < kSpan; ++b) store_as(&weights[r][b * kPage], scores[r][b]);
        }
        const int left = last - page * kPage;
        const int num_tokens = left < kSpan * kPage ? left : kSpan * kPage;
        long column = 0;
        for (; column + 4 * kLanes <= cache.head_dim; column += 4 * kLanes)
            add_values<T, R, 4>(rows, cache, page, num_tokens, weights, shrink, column, out);
        for (; column < cache.head_dim; column += kLanes)
            add_values<T, R, 1>(rows, cache, page, num_tokens, weights, shrink, column, out);
    }
    for (int r = 0; r < R; ++r)
        for (long d = 0; d < cache.head_dim; d += kLanes) {
            float* x = out + r * cache.head_dim + d;
            store(x, load<Floats>(x) / running_sum[r]);
        }
}

template <class T, int R = kMaxRows>
void attend(int num_rows, const QueryRows<T>& rows, const PagedCache<T>& cache, float* out) {
    if (num_rows == R) return attend_rows<T, R>(rows, cache, out);
    if constexpr (R > 1) attend<T, R - 1>(num_rows, rows, cache, out);
}

}  // namespace millrace
