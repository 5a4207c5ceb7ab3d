// One step of the model: every thread runs `Step::run`, phase by phase, with a barrier where a phase needs the whole of
// the one before. The phases of a layer read top to bottom as the decoder in kvik/checkpoint/spec.py does.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.h"

namespace kvik {
namespace {

// Fixed places at which attention cuts a sequence. Part of the result's definition: never derived from the machine.
constexpr int64_t PARTITION = 256;
// Query rows (heads of a group x tokens) of one attention item: 16s for tiles, 12s for registers.
constexpr int64_t QUERY_ROWS = 48;
// Activations that should stay in a core's L2 while the panels of a matrix pass by.
constexpr int64_t L2_BUDGET = 512 << 10;
// Rows whose logits are held at a time: 128 x 151,936 floats are 78 MB.
constexpr int64_t LOGIT_ROWS = 128;

// Calls of `each` and `linear`, for which a counter must be there: copies and embedding; norm, qkv, store, attend,
// combine, quantize, o, norm, gate and up, quantize, down; norm, head and sampling of a chunk of logits.
constexpr int64_t PHASES_BEFORE = 2, PHASES_A_LAYER = 11, PHASES_OF_LOGITS = 3;

class Step {
public:
    Step(Model& model, const KvikPlan& plan, KvikResult& result);
    void run(int thread);
    bool is_small() const;

private:
    int32_t heads_together(int64_t tokens, int64_t partitions) const;
    void plan_attention();
    void plan_logits();
    void carve();
    void copy_blocks();
    void embed_and_rotate();
    void layer(int index, int thread);
    void attention(int index, int thread);
    void logits(int thread);
    void sample(int64_t first, int64_t count, int thread);

    void norm(const float* weight, const int32_t* rows, int64_t count);
    const void* quantized(const void* rows, int64_t columns);
    int64_t act_stride(int64_t columns) const { return m_.act_form() == ACT_INT8 ? columns / KBLOCK : columns; }
    void linear(const Matrix& weights, const void* act, int64_t inputs, int64_t rows, const float* bias,
                Epilogue epilogue, float* out, int64_t out_stride, void* act_out, int64_t act_out_stride,
                int64_t columns);
    template <class Body>
    void each(int64_t total, int64_t piece, Body body);
    void barrier() { m_.pool.barrier(); }
    char* kv_layer(int index) const { return m_.kv_arena.data() + index * m_.kv.layer_bytes(); }

    Model& m_;
    const KvikPlan& plan_;
    KvikResult& result_;
    const Kernels& k_;
    int64_t tokens_, partition_, query_tokens_, scratch_bytes_ = 0;
    Activations a_{};
    std::vector<TokenRun> runs_;
    std::vector<AttendItem> items_;
    std::vector<CombineItem> combines_;
    int64_t num_partials_ = 0, partial_stride_ = 0;
    // Rows of logits to compute: the token each is taken from, and for draws the row of logits they read.
    std::vector<int32_t> logit_tokens_, draw_rows_;
    static thread_local int phase_;
};

thread_local int Step::phase_ = 0;

Step::Step(Model& model, const KvikPlan& plan, KvikResult& result)
    : m_(model), plan_(plan), result_(result), k_(*model.kernels), tokens_(plan.num_tokens) {
    int64_t longest = 1;
    for (int32_t r = 0; r < plan.num_rows; r++) longest = std::max<int64_t>(longest, plan.seq_lens[r]);
    partition_ = m_.spec.naive_attention ? padded(longest) : PARTITION;
    query_tokens_ = std::max<int64_t>(1, QUERY_ROWS / m_.group());
    plan_attention();
    plan_logits();
    carve();
    const int64_t chunks = (static_cast<int64_t>(logit_tokens_.size()) + LOGIT_ROWS - 1) / LOGIT_ROWS;
    m_.claims.reset(static_cast<int>(PHASES_BEFORE + PHASES_A_LAYER * m_.spec.num_layers + PHASES_OF_LOGITS * chunks));
}

// Whether one core is done sooner than several could be woken and meet some 8 times a layer. The threads do not change
// the result, so this may be a guess: reads at 20 GB/s, arithmetic at 100 GFLOP/s.
bool Step::is_small() const {
    const double read = static_cast<double>(m_.weights.size()) / 20e9;
    const double multiplied = static_cast<double>(m_.weights.size()) * static_cast<double>(tokens_) / 100e9;
    return std::max(read, multiplied) < 10e-6 * m_.spec.num_layers;
}

// KV heads that one item attends to for so many query tokens over so many partitions: as many as there are rows for, so
// that what it reads lies in long runs; one, if there would be too few pieces for the threads.
int32_t Step::heads_together(int64_t tokens, int64_t partitions) const {
    if (plan_.num_rows * partitions < 2 * m_.pool.size()) return 1;
    return static_cast<int32_t>(std::clamp<int64_t>(QUERY_ROWS / (tokens * m_.group()), 1, HEADS_TOGETHER));
}

void Step::plan_attention() {
    std::vector<int64_t> lengths;
    for (int32_t row = 0; row < plan_.num_rows; row++) {
        const int32_t begin = plan_.query_start_loc[row], end = plan_.query_start_loc[row + 1];
        for (int32_t t = begin; t < end;) {
            int32_t stop = std::min<int32_t>(end, t + GROUP - plan_.positions[t] % GROUP);
            runs_.push_back({row, t, stop});
            t = stop;
        }
        for (int32_t t = begin; t < end; t += static_cast<int32_t>(query_tokens_)) {
            int32_t stop = std::min<int32_t>(end, t + static_cast<int32_t>(query_tokens_));
            int32_t parts = static_cast<int32_t>(plan_.positions[stop - 1] / partition_ + 1);
            const int32_t together = heads_together(stop - t, parts);
            for (int32_t h = 0; h < m_.spec.num_kv_heads; h += together)
                items_.push_back({row, t, stop, h, std::min(h + together, m_.spec.num_kv_heads), 0, parts, -1});
        }
    }
    // Few items and many threads: let several threads share one sequence, each some of its partitions.
    const int64_t wanted = 2 * m_.pool.size();
    if (m_.pool.size() > 1 && static_cast<int64_t>(items_.size()) < wanted) {
        std::vector<AttendItem> whole;
        whole.swap(items_);
        const int64_t share = (wanted + whole.size() - 1) / whole.size();
        for (AttendItem item : whole) {
            const int32_t parts = item.part_end;
            if (parts < 2) {
                items_.push_back(item);
                continue;
            }
            const int32_t piece = static_cast<int32_t>((parts + share - 1) / share);
            const int32_t first = static_cast<int32_t>(num_partials_);
            combines_.push_back({item.row, item.begin, item.end, item.head_begin, item.head_end, first, parts});
            for (int32_t p = 0; p < parts; p += piece)
                items_.push_back({item.row, item.begin, item.end, item.head_begin, item.head_end, p,
                                  std::min(parts, p + piece), first + p});
            num_partials_ += parts;
        }
    }
    // Longest first, so that the last piece claimed is a short one.
    std::stable_sort(items_.begin(), items_.end(), [](const AttendItem& a, const AttendItem& b) {
        return int64_t(a.part_end - a.part_begin) * (a.end - a.begin) >
               int64_t(b.part_end - b.part_begin) * (b.end - b.begin);
    });
}

void Step::plan_logits() {
    if (result_.logits) {
        for (int32_t t = 0; t < plan_.num_tokens; t++) logit_tokens_.push_back(t);
        return;
    }
    // Draws of one row (the choices of a request) share its logits and come one after another.
    for (int32_t s = 0; s < plan_.sample.num_draws; s++) {
        int32_t token = plan_.query_start_loc[plan_.sample.rows[s] + 1] - 1;
        if (logit_tokens_.empty() || logit_tokens_.back() != token) logit_tokens_.push_back(token);
        draw_rows_.push_back(static_cast<int32_t>(logit_tokens_.size()) - 1);
    }
    for (int32_t q = 0; q < plan_.score.num_scores; q++) logit_tokens_.push_back(plan_.score.indices[q]);
}

void Step::carve() {
    const Model& m = m_;
    const int64_t rows = round_up(tokens_, ROW_PADDING), dims = padded(m.spec.head_dim);
    const int64_t logit_rows = std::min<int64_t>(LOGIT_ROWS, static_cast<int64_t>(logit_tokens_.size()));
    const int64_t normed_rows = std::max(rows, round_up(logit_rows, ROW_PADDING));
    partial_stride_ = round_up(query_tokens_ * m.group() * (2 + dims), 16);
    auto take_all = [&](Carver& c) {
        a_.x = c.take<float>(rows * m.hidden());
        a_.normed = c.take<char>(normed_rows * act_bytes(m.act_form(), m.hidden()));
        a_.qkv = c.take<float>(rows * m.qkv_columns());
        a_.q = c.take<char>((tokens_ * m.spec.num_heads + ROW_PADDING) * act_bytes(m.kv_act_form(), dims));
        a_.attended = c.take<char>(rows * act_bytes(m.row_form(), m.k_column()));
        a_.hidden = c.take<char>(rows * act_bytes(m.row_form(), m.inner()));
        const int64_t blocks = std::max(m.k_column(), m.inner()) / KBLOCK;
        a_.quantized = c.take<ActBlock>(m.act_form() == ACT_INT8 ? rows * blocks : 0);
        a_.cos = c.take<float>(tokens_ * m.spec.head_dim / 2);
        a_.sin = c.take<float>(tokens_ * m.spec.head_dim / 2);
        a_.logits = c.take<float>(logit_rows * padded(m.spec.vocab_size));
        a_.partials = c.take<float>(num_partials_ * partial_stride_);
    };
    Carver measure;
    take_all(measure);
    scratch_bytes_ = round_up(std::max(k_.attend_scratch(m.spec, query_tokens_ * m.group(), partition_),
                                       k_.sampler_scratch(m.spec.vocab_size)), 4096);
    if (!m_.activations.grow(measure.used()) || !m_.scratch_arena.grow(scratch_bytes_ * m.pool.size()))
        throw Error{"no memory for the activations of a step of " + std::to_string(tokens_) + " tokens"};
    Carver carver(m_.activations.data());
    take_all(carver);
}

template <class Body>
void Step::each(int64_t total, int64_t piece, Body body) {
    m_.claims.each(phase_++, total, std::max<int64_t>(1, piece), body);
}

void Step::run(int thread) {
    phase_ = 0;
    k_.begin();
    copy_blocks();
    embed_and_rotate();
    for (int i = 0; i < m_.spec.num_layers; i++) layer(i, thread);
    logits(thread);
    k_.end();
}

void Step::copy_blocks() {
    const int64_t bytes = m_.kv.block_bytes();
    each(int64_t(plan_.num_copies) * m_.spec.num_layers, 1, [&](int64_t i, int64_t) {
        char* layer = kv_layer(static_cast<int>(i % m_.spec.num_layers));
        const int32_t* pair = plan_.copies + i / m_.spec.num_layers * 2;
        std::memcpy(layer + pair[1] * bytes, layer + pair[0] * bytes, bytes);
    });
}

void Step::embed_and_rotate() {
    const int64_t half = m_.spec.head_dim / 2;
    EmbedArgs args{plan_.token_ids, m_.embedding, m_.spec.hidden_size, a_.x, m_.hidden()};
    each(tokens_, 4, [&](int64_t begin, int64_t end) {
        k_.embed(args, begin, end);
        for (int64_t t = begin; t < end; t++) {
            // The memory held something else in the last step, and everything after reads whole panels.
            std::memset(a_.x + t * m_.hidden() + m_.spec.hidden_size, 0,
                        (m_.hidden() - m_.spec.hidden_size) * sizeof(float));
            for (int64_t i = 0; i < half; i++) {
                float angle = static_cast<float>(plan_.positions[t]) * m_.inv_freq[i];
                a_.cos[t * half + i] = std::cos(angle) * m_.spec.rope_attention_factor;
                a_.sin[t * half + i] = std::sin(angle) * m_.spec.rope_attention_factor;
            }
            const int64_t used = m_.q_columns(), all = m_.k_column(), size = act_bytes(m_.row_form(), 1);
            std::memset(static_cast<char*>(a_.attended) + (t * all + used) * size, 0, (all - used) * size);
        }
    });
    barrier();
}

void Step::norm(const float* weight, const int32_t* rows, int64_t count) {
    NormArgs args{a_.x, m_.hidden(), m_.spec.hidden_size, weight, m_.spec.rms_norm_eps, rows, a_.normed,
                  act_stride(m_.hidden()), m_.act_form()};
    each(count, 4, [&](int64_t begin, int64_t end) { k_.rms_norm(args, begin, end); });
    barrier();
}

// Rows as the next product takes them: themselves, or blocks of whole numbers.
const void* Step::quantized(const void* rows, int64_t columns) {
    if (m_.act_form() != ACT_INT8) return rows;
    QuantizeArgs args{static_cast<const float*>(rows), columns, a_.quantized};
    each(tokens_, 4, [&](int64_t begin, int64_t end) { k_.quantize(args, begin, end); });
    barrier();
    return a_.quantized;
}

void Step::linear(const Matrix& weights, const void* act, int64_t inputs, int64_t rows, const float* bias,
                  Epilogue epilogue, float* out, int64_t out_stride, void* act_out, int64_t act_out_stride,
                  int64_t columns) {
    LinearArgs args{weights, act, act_stride(inputs), bias, epilogue, out, out_stride, act_out,
                    act_out_stride, m_.row_form(), columns};
    const int64_t fitting = std::max<int64_t>(48, L2_BUDGET / act_bytes(m_.act_form(), inputs) / 48 * 48);
    if (rows <= fitting) {
        m_.claims.each_guided(phase_++, weights.panels, m_.pool.size(),
                              [&](int64_t begin, int64_t end) { k_.linear(args, begin, end, 0, rows); });
    } else {
        // Blocks of rows that stay in L2 while the panels pass by.
        const int64_t row_blocks = (rows + fitting - 1) / fitting;
        const int64_t per_block = round_up((rows + row_blocks - 1) / row_blocks, 16);
        const int64_t piece = std::max<int64_t>(1, std::min<int64_t>(8, weights.panels / (4 * m_.pool.size())));
        const int64_t pieces = (weights.panels + piece - 1) / piece;
        each(row_blocks * pieces, 1, [&](int64_t i, int64_t) {
            int64_t row = i / pieces * per_block, panel = i % pieces * piece;
            k_.linear(args, panel, std::min(weights.panels, panel + piece), row, std::min(rows, row + per_block));
        });
    }
    barrier();
}

void Step::layer(int index, int thread) {
    const Layer& w = m_.layers[index];
    const int64_t hidden = m_.hidden(), inner = m_.inner();
    norm(w.attn_norm, nullptr, tokens_);
    linear(w.qkv, a_.normed, hidden, tokens_, w.qkv_bias, STORE, a_.qkv, m_.qkv_columns(), nullptr, 0,
           m_.qkv_columns());
    attention(index, thread);
    linear(w.o, quantized(a_.attended, m_.k_column()), m_.k_column(), tokens_, w.o_bias, ADD, a_.x, hidden, nullptr, 0,
           hidden);
    norm(w.mlp_norm, nullptr, tokens_);
    linear(w.gate_up, a_.normed, hidden, tokens_, nullptr, SILU_MUL, nullptr, 0, a_.hidden, inner, 2 * inner);
    linear(w.down, quantized(a_.hidden, inner), inner, tokens_, nullptr, ADD, a_.x, hidden, nullptr, 0, hidden);
}

void Step::attention(int index, int thread) {
    const Layer& w = m_.layers[index];
    RopeStoreArgs store{&m_.spec, a_.qkv, m_.qkv_columns(), m_.k_column(), m_.v_column(), w.q_norm, w.k_norm, a_.cos,
                        a_.sin, plan_.positions, plan_.block_tables, plan_.table_width, runs_.data(), m_.kv,
                        kv_layer(index), a_.q, tokens_, m_.kv_act_form()};
    each(static_cast<int64_t>(runs_.size()) * m_.spec.num_kv_heads, 2,
         [&](int64_t begin, int64_t end) { k_.rope_store(store, begin, end); });
    barrier();
    AttendArgs args{&m_.spec, items_.data(), m_.windows[index], partition_, a_.q, tokens_, plan_.positions,
                    plan_.block_tables, plan_.table_width, m_.kv, kv_layer(index), a_.attended, m_.k_column(),
                    m_.row_form(), a_.partials, partial_stride_};
    char* scratch = m_.scratch_arena.data() + thread * scratch_bytes_;
    m_.claims.each_guided(phase_++, static_cast<int64_t>(items_.size()), m_.pool.size(),
                          [&](int64_t begin, int64_t end) { k_.attend(args, begin, end, scratch); });
    barrier();
    if (combines_.empty()) return;
    each(static_cast<int64_t>(combines_.size()), 1, [&](int64_t i, int64_t) { k_.combine(args, combines_[i]); });
    barrier();
}

void Step::logits(int thread) {
    const int64_t total = static_cast<int64_t>(logit_tokens_.size()), stride = padded(m_.spec.vocab_size);
    for (int64_t first = 0; first < total; first += LOGIT_ROWS) {
        const int64_t count = std::min(LOGIT_ROWS, total - first);
        norm(m_.final_norm, logit_tokens_.data() + first, count);
        linear(m_.head, a_.normed, m_.hidden(), count, nullptr, STORE, a_.logits, stride, nullptr, 0, stride);
        sample(first, count, thread);
        barrier();
    }
}

// What is done with rows first .. first + count of the logits.
void Step::sample(int64_t first, int64_t count, int thread) {
    const int64_t stride = padded(m_.spec.vocab_size), vocab = m_.spec.vocab_size;
    void* scratch = m_.scratch_arena.data() + thread * scratch_bytes_;
    if (result_.logits) {
        each(count, 1, [&](int64_t i, int64_t) {
            std::memcpy(result_.logits + (first + i) * vocab, a_.logits + i * stride, vocab * sizeof(float));
        });
        return;
    }
    const int64_t draws = plan_.sample.num_draws, scores = plan_.score.num_scores;
    const int64_t first_score = static_cast<int64_t>(logit_tokens_.size()) - scores;
    each(draws + scores, 1, [&](int64_t i, int64_t) {
        int64_t row = (i < draws ? draw_rows_[i] : first_score + i - draws) - first;
        if (row < 0 || row >= count) return;
        const float* logits = a_.logits + row * stride;
        if (i < draws)
            k_.draw(plan_.sample, static_cast<int32_t>(i), logits, static_cast<int32_t>(vocab), scratch, result_);
        else
            k_.score(plan_.score, static_cast<int32_t>(i - draws), logits, static_cast<int32_t>(vocab), scratch,
                     result_.scored);
    });
}

}  // namespace

void Model::step(const KvikPlan& plan, KvikResult& result) {
    if (!kv_arena.data()) throw Error{"a step before the KV cache was allocated"};
    Step step(*this, plan, result);
    pool.run([&](int thread) { step.run(thread); }, step.is_small());
}

}  // namespace kvik
