// Activations [rows, inputs] times packed weights.
//
// A packed weight is a row of panels of 32 outputs. A panel is [inputs / unit][2] vectors: lane i
// of the first holds output i, of the second output 16 + i. A panel streams through the registers
// once for every block of up to kRowBlock rows, whose sums all stay in registers.
#pragma once

#include "simd.h"

namespace millrace {

constexpr int kPanel = 32;
constexpr long kPrefetchBytes = 4096;  // ahead; panels follow each other in memory
#if defined(__AVX512F__)
constexpr int kRowBlock = 12;  // 24 of 32 registers hold sums
#else
constexpr int kRowBlock = 2;
#endif

// Full blocks first: while a block multiplies, the panel streams in from memory, and a large block
// gives it the time. A remainder too small to hide the latency of the sums shares with the block
// before it.
struct RowBlocks {
    long num, rows;
    explicit RowBlocks(long num_rows)
        : num((num_rows + kRowBlock - 1) / kRowBlock), rows(num_rows) {}
    long begin(long i) const {
        if (i == num) return rows;
        const long rest = rows - (num - 1) * kRowBlock;
        const bool shares = i > 0 && i == num - 1 && rest < kRowBlock / 3;
        return i * kRowBlock - (shares ? (kRowBlock - rest) / 2 : 0);
    }
};

template <class T, int R, class Emit>
inline void multiply_rows(const T* a, long stride, const char* panel, long num_units, long row,
                          const Emit& emit) {
    typedef typename Unit<T>::Vector Vector;
    Floats sums[R][2];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = broadcast(0.0f);
    for (long u = 0; u < num_units; ++u, panel += 2 * kVectorBytes) {
        const Vector left = load<Vector>(panel), right = load<Vector>(panel + kVectorBytes);
        __builtin_prefetch(panel + kPrefetchBytes);
        __builtin_prefetch(panel + kPrefetchBytes + kVectorBytes);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const auto x = load_unit(a + r * stride + u * Unit<T>::size);
            sums[r][0] = Unit<T>::multiply_add(sums[r][0], left, x);
            sums[r][1] = Unit<T>::multiply_add(sums[r][1], right, x);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) emit(row + r, sums[r][0], sums[r][1]);
}

template <class T, int R, class Emit>
inline void multiply_block(int num_rows, const T* a, long stride, const char* panel,
                           long num_units, long row, const Emit& emit) {
    if (num_rows == R) return multiply_rows<T, R>(a, stride, panel, num_units, row, emit);
    if constexpr (R > 1)
        multiply_block<T, R - 1>(num_rows, a, stride, panel, num_units, row, emit);
}

// Calls emit(row, sums of outputs 0-15, sums of outputs 16-31) for the panel and these rows.
template <class T, class Emit>
void multiply_panel(const T* a, long stride, long first_row, long last_row, const char* panel,
                    long num_inputs, const Emit& emit) {
    const RowBlocks blocks(last_row - first_row);
    for (long i = 0; i < blocks.num; ++i) {
        const long begin = first_row + blocks.begin(i), end = first_row + blocks.begin(i + 1);
        multiply_block<T, kRowBlock>(int(end - begin), a + begin * stride, stride, panel,
                                     num_inputs / Unit<T>::size, begin, emit);
    }
}

}  // namespace millrace
