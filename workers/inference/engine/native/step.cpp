// One step of a decoder-only transformer on the CPU: all layers, for a batch of packed sequences.
//
// The functions at the end are called by native/library.py, which mirrors the structs below.
// Sums, norms and the residual stream are float; weights, cache and the inputs of products are T.

#include <algorithm>
#include <exception>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "rows.h"
#include "simd.h"
#include "team.h"

namespace millrace {

extern "C" {

struct LayerWeights {
    const float* attention_norm;
    const float* attention_post_norm;  // null: none
    const float* mlp_norm;
    const float* mlp_post_norm;  // null: none
    const float* query_norm;     // null: none
    const float* key_norm;       // null: none
    const void* qkv;             // packed
    const float* qkv_bias;       // null: none
    const void* output;          // packed
    const void* gate_up;         // packed; a panel holds 16 gates, then their 16 ups
    const void* down;            // packed
    const float* cos;            // [context_length, head_dim / 2]
    const float* sin;
    void* keys;  // [pages, kv_heads, kPage * head_dim], see attention.h
    void* values;
    int64_t window;  // tokens a token sees, itself included; 0: all before it
};

struct ModelWeights {
    int32_t is_bf16;
    int32_t activation;
    int64_t hidden, num_heads, num_kv_heads, head_dim, intermediate, vocab, num_layers;
    float norm_eps, qk_norm_eps, attention_scale, embedding_scale;
    const void* embedding;  // [vocab, hidden], not packed
    const void* head;       // packed
    const float* final_norm;
    const LayerWeights* layers;
};

struct Sequence {
    int32_t first_row;  // of its tokens in this step
    int32_t num_rows;
    int32_t start;       // position of the first of them
    int32_t first_page;  // where its page numbers begin in StepInput::pages
};

struct StepInput {
    int64_t num_rows, num_sequences, num_outputs;
    const int32_t* token_ids;  // [num_rows]
    const Sequence* sequences;
    const int32_t* pages;
    const int32_t* output_rows;  // [num_outputs]
    float* logits;               // [num_outputs, vocab]
};
}

namespace {

constexpr long kRowsPerTask = 4;
constexpr long kGemmRows = 192;       // rows of a product that one task computes
constexpr long kAttentionTokens = 16;  // query tokens of one attention task
constexpr int kPhasesPerLayer = 8;

long ceil_div(long a, long b) { return (a + b - 1) / b; }

template <class T>
class Step {
   public:
    Step(const ModelWeights& model, const StepInput& input, Team& team, float* floats, T* elements)
        : m_(model), in_(input), team_(team) {
        const long rows = in_.num_rows;
        residual_ = floats;
        wide_ = residual_ + rows * m_.hidden;
        normed_ = elements;
        mixed_ = normed_ + rows * m_.hidden;
        gated_ = mixed_ + rows * m_.num_heads * m_.head_dim;
        for (long s = 0; s < in_.num_sequences; ++s) {
            const Sequence& sequence = in_.sequences[s];
            for (long t = 0; t < sequence.num_rows; t += kAttentionTokens)
                spans_.push_back({&sequence, int(t)});
        }
    }

    static long num_floats(const ModelWeights& m, long rows) {
        const long qkv = (m.num_heads + 2 * m.num_kv_heads) * m.head_dim;
        return rows * (m.hidden + (qkv > m.hidden ? qkv : m.hidden));
    }
    static long num_elements(const ModelWeights& m, long rows) {
        return rows * (m.hidden + m.num_heads * m.head_dim + m.intermediate);
    }

    // Every thread of the team runs this.
    void run() {
        int phase = 0;
        embed(phase++);
        for (long i = 0; i < m_.num_layers; ++i) {
            const LayerWeights& layer = m_.layers[i];
            qkv(phase++, layer);
            write_cache(phase++, layer);
            attention(phase++, layer);
            project(phase++, mixed_, m_.num_heads * m_.head_dim, layer.output,
                    layer.attention_post_norm);
            norm(phase++, layer.attention_post_norm, layer.mlp_norm);
            gate_up(phase++, layer);
            project(phase++, gated_, m_.intermediate, layer.down, layer.mlp_post_norm);
            const bool is_last = i + 1 == m_.num_layers;
            norm(phase++, layer.mlp_post_norm,
                 is_last ? nullptr : m_.layers[i + 1].attention_norm);
        }
        select_outputs(phase++);
        head(phase++);
    }

   private:
    struct Span {
        const Sequence* sequence;
        int token;
    };

    PagedCache<T> cache(const LayerWeights& layer) const {
        return {static_cast<T*>(layer.keys), static_cast<T*>(layer.values), m_.head_dim,
                m_.num_kv_heads};
    }

    const int32_t* pages(const Sequence& s) const { return in_.pages + s.first_page; }

    long qkv_width() const { return (m_.num_heads + 2 * m_.num_kv_heads) * m_.head_dim; }

    template <class Task>
    void each_row(int phase, long num_rows, const Task& task) {
        team_.each(phase, int(ceil_div(num_rows, kRowsPerTask)), [&](long i) {
            const long end = std::min((i + 1) * kRowsPerTask, num_rows);
            for (long row = i * kRowsPerTask; row < end; ++row) task(row);
        });
    }

    // emit(row, panel, sums of outputs 0-15, sums of outputs 16-31)
    template <class Emit>
    void product(int phase, const T* a, long num_rows, long num_inputs, const void* weight,
                 long num_outputs, const Emit& emit) {
        const long num_panels = ceil_div(num_outputs, kPanel);
        const long num_pieces = ceil_div(num_rows, kGemmRows);
        const long panel_bytes = num_inputs * kPanel * long(sizeof(T));
        team_.each(phase, int(num_panels * num_pieces), [&](long task) {
            const long panel = task / num_pieces, piece = task % num_pieces;
            multiply_panel<T>(
                a, num_inputs, num_rows * piece / num_pieces, num_rows * (piece + 1) / num_pieces,
                static_cast<const char*>(weight) + panel * panel_bytes, num_inputs,
                [&](long row, Floats left, Floats right) { emit(row, panel, left, right); });
        });
    }

    void embed(int phase) {
        each_row(phase, in_.num_rows, [&](long row) {
            const T* from = static_cast<const T*>(m_.embedding) + in_.token_ids[row] * m_.hidden;
            float* to = residual_ + row * m_.hidden;
            for (long i = 0; i < m_.hidden; i += kLanes)
                store(to + i, load_as_floats(from + i) * m_.embedding_scale);
            rms_norm(normed_ + row * m_.hidden, to, m_.layers[0].attention_norm, m_.hidden,
                     m_.norm_eps);
        });
    }

    void qkv(int phase, const LayerWeights& layer) {
        const long width = qkv_width();
        product(phase, normed_, in_.num_rows, m_.hidden, layer.qkv, width,
                [&](long row, long panel, Floats left, Floats right) {
                    const long at = panel * kPanel;
                    float* to = wide_ + row * width + at;
                    if (layer.qkv_bias) {
                        left += load<Floats>(layer.qkv_bias + at);
                        if (at + kLanes < width) right += load<Floats>(layer.qkv_bias + at + kLanes);
                    }
                    store(to, left);
                    if (at + kLanes < width) store(to + kLanes, right);
                });
    }

    void prepare(float* head, const float* from, const float* norm, const LayerWeights& layer,
                 long position) const {
        const long half = m_.head_dim / 2;
        if (norm) rms_norm(head, from, norm, m_.head_dim, m_.qk_norm_eps);
        else std::memcpy(head, from, size_t(m_.head_dim) * sizeof(float));
        rotate(head, layer.cos + position * half, layer.sin + position * half, m_.head_dim);
    }

    // One task writes all new tokens of a sequence and head: pairs of tokens share a word.
    void write_cache(int phase, const LayerWeights& layer) {
        team_.each(phase, int(in_.num_sequences * m_.num_kv_heads), [&](long task) {
            const Sequence& s = in_.sequences[task / m_.num_kv_heads];
            const long head = task % m_.num_kv_heads;
            PagedCache<T> to = cache(layer);
            alignas(64) float key[kMaxHeadDim];
            for (int i = 0; i < s.num_rows; ++i) {
                const float* row = wide_ + (s.first_row + i) * qkv_width();
                const float* k = row + (m_.num_heads + head) * m_.head_dim;
                const int position = s.start + i;
                prepare(key, k, layer.key_norm, layer, position);
                to.write(pages(s)[position / kPage], position % kPage, head, key,
                         k + m_.num_kv_heads * m_.head_dim);
            }
        });
    }

    void attention(int phase, const LayerWeights& layer) {
        team_.each(phase, int(long(spans_.size()) * m_.num_kv_heads), [&](long task) {
            const Span& span = spans_[size_t(task / m_.num_kv_heads)];
            const int left = span.sequence->num_rows - span.token;
            const long group = m_.num_heads / m_.num_kv_heads;
            const long num_rows = std::min(long(left), kAttentionTokens) * group;
            const long num_blocks = ceil_div(num_rows, kMaxRows);
            for (long b = 0; b < num_blocks; ++b)
                attend_block(layer, span, task % m_.num_kv_heads, num_rows * b / num_blocks,
                             num_rows * (b + 1) / num_blocks);
        });
    }

    // Query rows begin to end of a span; row i is query head i % group of token i / group.
    void attend_block(const LayerWeights& layer, const Span& span, long kv_head, long begin,
                      long end) {
        const long group = m_.num_heads / m_.num_kv_heads, dim = m_.head_dim;
        alignas(64) float query[kMaxHeadDim];
        alignas(64) T queries[kMaxRows * kMaxHeadDim];
        alignas(64) float out[kMaxRows * kMaxHeadDim];
        QueryRows<T> rows;
        rows.queries = queries;
        rows.pages = pages(*span.sequence);
        rows.head = kv_head;
        rows.scale = m_.attention_scale;
        for (long i = begin; i < end; ++i) {
            const long token = span.token + i / group;
            const long position = span.sequence->start + token;
            const long head = kv_head * group + i % group;
            const long r = i - begin;
            prepare(query, wide_ + (span.sequence->first_row + token) * qkv_width() + head * dim,
                    layer.query_norm, layer, position);
            for (long d = 0; d < dim; d += kLanes)
                store_as(queries + r * dim + d, load<Floats>(query + d));
            rows.last[r] = int(position + 1);
            rows.first[r] = layer.window ? int(std::max(0L, position + 1 - layer.window)) : 0;
        }
        attend<T>(int(end - begin), rows, cache(layer), out);
        for (long i = begin; i < end; ++i) {
            const long row = span.sequence->first_row + span.token + i / group;
            T* to = mixed_ + (row * m_.num_heads + kv_head * group + i % group) * dim;
            for (long d = 0; d < dim; d += kLanes)
                store_as(to + d, load<Floats>(out + (i - begin) * dim + d));
        }
    }

    // Adds a product to the residual stream, or leaves it in wide_ for a norm that comes first.
    void project(int phase, const T* from, long num_inputs, const void* weight,
                 const float* post_norm) {
        float* to = post_norm ? wide_ : residual_;
        const bool adds = !post_norm;
        product(phase, from, in_.num_rows, num_inputs, weight, m_.hidden,
                [&](long row, long panel, Floats left, Floats right) {
                    float* x = to + row * m_.hidden + panel * kPanel;
                    store(x, adds ? load<Floats>(x) + left : left);
                    if (panel * kPanel + kLanes < m_.hidden)
                        store(x + kLanes, adds ? load<Floats>(x + kLanes) + right : right);
                });
    }

    void norm(int phase, const float* post_norm, const float* next_norm) {
        if (!post_norm && !next_norm) return;
        each_row(phase, in_.num_rows, [&](long row) {
            float* x = residual_ + row * m_.hidden;
            if (post_norm) add_rms_norm(x, wide_ + row * m_.hidden, post_norm, m_.hidden, m_.norm_eps);
            if (next_norm) rms_norm(normed_ + row * m_.hidden, x, next_norm, m_.hidden, m_.norm_eps);
        });
    }

    void gate_up(int phase, const LayerWeights& layer) {
        const Activation activation = static_cast<Activation>(m_.activation);
        product(phase, normed_, in_.num_rows, m_.hidden, layer.gate_up, 2 * m_.intermediate,
                [&](long row, long panel, Floats gates, Floats ups) {
                    store_as(gated_ + row * m_.intermediate + panel * kLanes,
                             gate(activation, gates) * ups);
                });
    }

    void select_outputs(int phase) {
        each_row(phase, in_.num_outputs, [&](long i) {
            rms_norm(normed_ + i * m_.hidden, residual_ + in_.output_rows[i] * m_.hidden,
                     m_.final_norm, m_.hidden, m_.norm_eps);
        });
    }

    void head(int phase) {
        product(phase, normed_, in_.num_outputs, m_.hidden, m_.head, m_.vocab,
                [&](long row, long panel, Floats left, Floats right) {
                    float* to = in_.logits + row * m_.vocab + panel * kPanel;
                    store_some(to, left, m_.vocab - panel * kPanel);
                    store_some(to + kLanes, right, m_.vocab - panel * kPanel - kLanes);
                });
    }

    static void store_some(float* to, Floats v, long num_left) {
        if (num_left >= kLanes) return store(to, v);
        for (long i = 0; i < num_left; ++i) to[i] = v[i];
    }

    const ModelWeights& m_;
    const StepInput& in_;
    Team& team_;
    std::vector<Span> spans_;
    float* residual_;  // [rows, hidden]
    float* wide_;      // [rows, qkv] or [rows, hidden]
    T* normed_;        // [rows, hidden]
    T* mixed_;         // [rows, heads * head_dim]
    T* gated_;         // [rows, intermediate]
};

// Owns scratch memory that grows to the largest step seen.
class Runner {
   public:
    Runner(const ModelWeights& model, RunParallel run_parallel)
        : model_(model),
          run_parallel_(run_parallel),
          team_(int(model.num_layers) * kPhasesPerLayer + 3) {}

    void run(const StepInput& input, int num_threads) {
        if (model_.is_bf16) run_as<bf16>(input, num_threads);
        else run_as<float>(input, num_threads);
    }

   private:
    template <class T>
    void run_as(const StepInput& input, int num_threads) {
        floats_.resize(size_t(Step<T>::num_floats(model_, input.num_rows)) + kLanes);
        elements_.resize(size_t(Step<T>::num_elements(model_, input.num_rows)) * sizeof(T) + 64);
        Step<T> step(model_, input, team_, aligned<float>(floats_.data()),
                     aligned<T>(elements_.data()));
        team_.begin();
        if (!run_parallel_ || num_threads == 1) return step.run();
        run_parallel_([](void* s) { static_cast<Step<T>*>(s)->run(); }, &step,
                      unsigned(num_threads), 0);
    }

    template <class P, class Q>
    static P* aligned(Q* from) {
        return reinterpret_cast<P*>((reinterpret_cast<uintptr_t>(from) + 63) / 64 * 64);
    }

    const ModelWeights model_;
    RunParallel run_parallel_;
    Team team_;
    std::vector<float> floats_;
    std::vector<char> elements_;
};

}  // namespace
}  // namespace millrace

extern "C" {

void* millrace_create(const millrace::ModelWeights* model, millrace::RunParallel run_parallel) {
    return new millrace::Runner(*model, run_parallel);
}

// Returns 0, or 1 when memory ran out.
int millrace_run(void* runner, const millrace::StepInput* input, int num_threads) {
    try {
        static_cast<millrace::Runner*>(runner)->run(*input, num_threads);
    } catch (const std::exception&) {
        return 1;
    }
    return 0;
}

void millrace_destroy(void* runner) { delete static_cast<millrace::Runner*>(runner); }
}
