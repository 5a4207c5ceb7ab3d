// One step of the model: every thread runs `Step::run`, phase by phase, with a barrier where a phase needs the whole of
// the one before. The phases of a layer read top to bottom as the decoder in kvik/checkpoint/spec.py does.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

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

// Calls of `each` and `linear`, for which a counter must be there: copies and embedding; norm, convert, qkv, store,
// attend, combine, convert, o, norm, convert, gate and up, their product, convert, down; norm, convert, head and sampling
// of a chunk of logits.
constexpr int64_t PHASES_BEFORE = 2, PHASES_A_LAYER = 14, PHASES_OF_LOGITS = 4;

// Activations as a matrix reads them.
struct View {
    ActForm form;
    const int32_t* order;
    bool operator==(const View& other) const { return form == other.form && order == other.order; }
};

// The matrices that read the same rows, at most three. Their columns follow one another.
class Readers {
public:
    Readers(const Model& model, std::initializer_list<const Matrix*> matrices) {
        for (const Matrix* m : matrices) {
            const View view{model.act_form(*m), m->order};
            matrices_[count_] = m;
            int at = 0;
            while (at < num_views_ && !(views_[at] == view)) at++;
            if (at == num_views_) views_[num_views_++] = view;
            view_of_[count_++] = at;
        }
    }
    int count() const { return count_; }
    const Matrix& matrix(int i) const { return *matrices_[i]; }
    const View& view(int i) const { return views_[i]; }
    int view_of(int matrix) const { return view_of_[matrix]; }
    int num_views() const { return num_views_; }
    int64_t panels() const {
        int64_t all = 0;
        for (int i = 0; i < count_; i++) all += matrices_[i]->panels;
        return all;
    }
    // The form in which rows are left for them: what all of them take, or floats to be converted. Blocks of whole
    // numbers can be made where 32 columns are at hand.
    ActForm left(bool in_blocks) const {
        const bool direct = num_views_ == 1 && !views_[0].order && (in_blocks || views_[0].form != ACT_INT8);
        return direct ? views_[0].form : ACT_F32;
    }
    // Whether rows of this form are what view i is.
    bool is_left(int i, ActForm form) const { return num_views_ == 1 && !views_[i].order && views_[i].form == form; }

private:
    const Matrix* matrices_[MAX_VIEWS] = {};
    View views_[MAX_VIEWS] = {};
    int view_of_[MAX_VIEWS] = {}, count_ = 0, num_views_ = 0;
};

// Values of a row, or blocks of it.
int64_t act_stride(ActForm form, int64_t columns) { return form == ACT_INT8 ? columns / KBLOCK : columns; }

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

    Readers readers_of_qkv(const Layer& w) const { return {m_, {&w.q, &w.k, &w.v}}; }
    Readers readers_of_o(const Layer& w) const { return {m_, {&w.o}}; }
    Readers readers_of_mlp(const Layer& w) const {
        return w.is_split() ? Readers{m_, {&w.gate, &w.up}} : Readers{m_, {&w.gate_up}};
    }
    Readers readers_of_down(const Layer& w) const { return {m_, {&w.down}}; }
    Readers readers_of_logits() const { return {m_, {&m_.head()}}; }

    void norm(const float* weight, const int32_t* rows, int64_t count, const Readers& readers);
    void views(const char* rows, ActForm form, int64_t columns, int64_t count, const Readers& readers);
    void linear(const Readers& readers, int64_t inputs, int64_t rows, const float* bias, Epilogue epilogue, float* out,
                int64_t out_stride, void* act_out, int64_t act_out_stride, ActForm out_form);
    void mlp(int index);
    void clear_padding(const TokenRun& run, ActForm form);
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
    static thread_local const char* views_[MAX_VIEWS];  // the rows at hand, as their readers take them
};

thread_local int Step::phase_ = 0;
thread_local const char* Step::views_[MAX_VIEWS] = {};

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

// Bytes of the widest row of some.
struct Widest {
    int64_t bytes = 0;
    void include(ActForm form, int64_t columns) { bytes = std::max(bytes, act_bytes(form, columns)); }
};

void Step::carve() {
    const Model& m = m_;
    const int64_t rows = round_up(tokens_, ROW_PADDING), dims = padded(m.spec.head_dim);
    const int64_t logit_rows = std::min<int64_t>(LOGIT_ROWS, static_cast<int64_t>(logit_tokens_.size()));
    const int64_t normed_rows = std::max(rows, round_up(logit_rows, ROW_PADDING));
    partial_stride_ = round_up(query_tokens_ * m.group() * (2 + dims), 16);
    Widest normed, attended, hidden, views[MAX_VIEWS];
    bool is_split = false;
    auto measure_site = [&](const Readers& readers, bool in_blocks, int64_t columns, Widest& produced) {
        const ActForm left = readers.left(in_blocks);
        produced.include(left, columns);
        for (int i = 0; i < readers.num_views(); i++)
            if (!readers.is_left(i, left)) views[i].include(readers.view(i).form, columns);
    };
    for (const Layer& w : m.layers) {
        measure_site(readers_of_qkv(w), true, m.hidden(), normed);
        measure_site(readers_of_mlp(w), true, m.hidden(), normed);
        measure_site(readers_of_o(w), false, m.k_column(), attended);
        measure_site(readers_of_down(w), false, m.inner(), hidden);
        is_split = is_split || w.is_split();
    }
    measure_site(readers_of_logits(), true, m.hidden(), normed);
    auto take_all = [&](Carver& c) {
        a_.x = c.take<float>(rows * m.hidden());
        a_.normed = c.take<char>(normed_rows * normed.bytes);
        a_.qkv = c.take<float>(rows * m.qkv_columns());
        a_.q = c.take<char>((tokens_ * m.spec.num_heads + ROW_PADDING) * act_bytes(m.kv_act_form(), dims));
        a_.attended = c.take<char>(rows * attended.bytes);
        a_.gate_up = c.take<float>(is_split ? rows * 2 * m.inner() : 0);
        a_.hidden = c.take<char>(rows * hidden.bytes);
        for (int i = 0; i < MAX_VIEWS; i++) a_.views[i] = c.take<char>(normed_rows * views[i].bytes);
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
        }
    });
    barrier();
}

void Step::norm(const float* weight, const int32_t* rows, int64_t count, const Readers& readers) {
    const ActForm form = readers.left(true);
    NormArgs args{a_.x, m_.hidden(), m_.spec.hidden_size, weight, m_.spec.rms_norm_eps, rows, a_.normed,
                  act_stride(form, m_.hidden()), form};
    each(count, 4, [&](int64_t begin, int64_t end) { k_.rms_norm(args, begin, end); });
    barrier();
    views(a_.normed, form, m_.hidden(), count, readers);
}

// Make rows what their readers take: themselves, or converted.
void Step::views(const char* rows, ActForm form, int64_t columns, int64_t count, const Readers& readers) {
    bool converted = false;
    for (int i = 0; i < readers.num_views(); i++) {
        const bool is_left = readers.is_left(i, form);
        views_[i] = is_left ? rows : a_.views[i];
        converted = converted || !is_left;
    }
    if (!converted) return;
    each(count, 4, [&](int64_t begin, int64_t end) {
        for (int i = 0; i < readers.num_views(); i++) {
            const View& view = readers.view(i);
            k_.convert({reinterpret_cast<const float*>(rows), columns, view.order, a_.views[i],
                        act_stride(view.form, columns), view.form}, begin, end);
        }
    });
    barrier();
}

// The rows at hand (`views`) times all their readers.
void Step::linear(const Readers& readers, int64_t inputs, int64_t rows, const float* bias, Epilogue epilogue,
                  float* out, int64_t out_stride, void* act_out, int64_t act_out_stride, ActForm out_form) {
    auto panels = [&](int64_t begin, int64_t end, int64_t row_begin, int64_t row_end) {
        int64_t first = 0;
        for (int i = 0; i < readers.count(); first += readers.matrix(i++).panels) {
            const Matrix& weights = readers.matrix(i);
            const int64_t from = std::max<int64_t>(begin - first, 0), to = std::min(end - first, weights.panels);
            if (from >= to) continue;
            const int64_t column = first * PANEL;
            const ActForm form = readers.view(readers.view_of(i)).form;
            LinearArgs args{weights, views_[readers.view_of(i)], act_stride(form, inputs), bias ? bias + column : nullptr,
                            epilogue, out ? out + column : nullptr, out_stride, act_out, act_out_stride, out_form,
                            weights.panels * PANEL};
            k_.linear(args, from, to, row_begin, row_end);
        }
    };
    const int64_t all = readers.panels();
    const int64_t fitting = std::max<int64_t>(48, L2_BUDGET / act_bytes(readers.view(0).form, inputs) / 48 * 48);
    if (rows <= fitting) {
        m_.claims.each_guided(phase_++, all, m_.pool.size(),
                              [&](int64_t begin, int64_t end) { panels(begin, end, 0, rows); });
    } else {
        // Blocks of rows that stay in L2 while the panels pass by.
        const int64_t row_blocks = (rows + fitting - 1) / fitting;
        const int64_t per_block = round_up((rows + row_blocks - 1) / row_blocks, 16);
        const int64_t piece = std::max<int64_t>(1, std::min<int64_t>(8, all / (4 * m_.pool.size())));
        const int64_t pieces = (all + piece - 1) / piece;
        each(row_blocks * pieces, 1, [&](int64_t i, int64_t) {
            int64_t row = i / pieces * per_block, panel = i % pieces * piece;
            panels(panel, std::min(all, panel + piece), row, std::min(rows, row + per_block));
        });
    }
    barrier();
}

void Step::layer(int index, int thread) {
    const Layer& w = m_.layers[index];
    const int64_t hidden = m_.hidden(), attended = m_.k_column();
    norm(w.attn_norm, nullptr, tokens_, readers_of_qkv(w));
    linear(readers_of_qkv(w), hidden, tokens_, w.qkv_bias, STORE, a_.qkv, m_.qkv_columns(), nullptr, 0, ACT_F32);
    attention(index, thread);
    views(a_.attended, readers_of_o(w).left(false), attended, tokens_, readers_of_o(w));
    linear(readers_of_o(w), attended, tokens_, w.o_bias, ADD, a_.x, hidden, nullptr, 0, ACT_F32);
    mlp(index);
}

void Step::mlp(int index) {
    const Layer& w = m_.layers[index];
    const int64_t hidden = m_.hidden(), inner = m_.inner();
    const ActForm form = readers_of_down(w).left(false);
    norm(w.mlp_norm, nullptr, tokens_, readers_of_mlp(w));
    if (w.is_split()) {
        linear(readers_of_mlp(w), hidden, tokens_, nullptr, STORE, a_.gate_up, 2 * inner, nullptr, 0, ACT_F32);
        SiluArgs args{a_.gate_up, inner, a_.hidden, form};
        each(tokens_, 4, [&](int64_t begin, int64_t end) { k_.silu_mul(args, begin, end); });
        barrier();
    } else {
        linear(readers_of_mlp(w), hidden, tokens_, nullptr, SILU_MUL, nullptr, 0, a_.hidden, inner, form);
    }
    views(a_.hidden, form, inner, tokens_, readers_of_down(w));
    linear(readers_of_down(w), inner, tokens_, nullptr, ADD, a_.x, hidden, nullptr, 0, ACT_F32);
}

// Past the heads, rows of attention's results are zero: their memory held something else before.
void Step::clear_padding(const TokenRun& run, ActForm form) {
    const int64_t used = m_.q_columns(), all = m_.k_column(), size = act_bytes(form, 1);
    for (int64_t t = run.begin; t < run.end && used < all; t++)
        std::memset(a_.attended + (t * all + used) * size, 0, (all - used) * size);
}

void Step::attention(int index, int thread) {
    const Layer& w = m_.layers[index];
    const ActForm form = readers_of_o(w).left(false);
    RopeStoreArgs store{&m_.spec, a_.qkv, m_.qkv_columns(), m_.k_column(), m_.v_column(), w.q_norm, w.k_norm, a_.cos,
                        a_.sin, plan_.positions, plan_.block_tables, plan_.table_width, runs_.data(), m_.kv,
                        kv_layer(index), a_.q, tokens_, m_.kv_act_form()};
    each(static_cast<int64_t>(runs_.size()) * m_.spec.num_kv_heads, 2, [&](int64_t begin, int64_t end) {
        k_.rope_store(store, begin, end);
        for (int64_t i = begin; i < end; i++)
            if (i % m_.spec.num_kv_heads == 0) clear_padding(runs_[i / m_.spec.num_kv_heads], form);
    });
    barrier();
    AttendArgs args{&m_.spec, items_.data(), m_.windows[index], partition_, a_.q, tokens_, plan_.positions,
                    plan_.block_tables, plan_.table_width, m_.kv, kv_layer(index), a_.attended, m_.k_column(),
                    form, a_.partials, partial_stride_};
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
        norm(m_.final_norm, logit_tokens_.data() + first, count, readers_of_logits());
        linear(readers_of_logits(), m_.hidden(), count, nullptr, STORE, a_.logits, stride, nullptr, 0, ACT_F32);
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
    check_complete();
    Step step(*this, plan, result);
    pool.run([&](int thread) { step.run(thread); }, step.is_small());
}

}  // namespace kvik
