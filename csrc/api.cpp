// The C interface: checks what crosses it and turns exceptions into messages.

#include <cstdio>
#include <exception>
#include <new>

#include "model.h"

using kvik::Error;

struct KvikModel {
    kvik::Model model;
};

namespace {

template <class Body>
int32_t guarded(char* error, int32_t size, Body body) {
    try {
        body();
        return 0;
    } catch (const Error& e) {
        std::snprintf(error, size, "%s", e.message.c_str());
    } catch (const std::bad_alloc&) {
        std::snprintf(error, size, "out of memory");
    } catch (const std::exception& e) {
        std::snprintf(error, size, "%s", e.what());
    }
    return 1;
}

const kvik::Kernels* kernels_or_throw(const char* isa) {
    const char* why = nullptr;
    const kvik::Kernels* kernels = kvik::choose_kernels(isa, &why);
    if (!kernels) throw Error{std::string("instruction set ") + isa + " cannot run here: " + why};
    return kernels;
}

}  // namespace

extern "C" {

int32_t kvik_abi(void) { return KVIK_ABI; }

int32_t kvik_isa_count(void) {
    int count;
    kvik::isa_list(&count);
    return count;
}

const char* kvik_isa_name(int32_t i) {
    int count;
    return kvik::isa_list(&count)[i].name;
}

const char* kvik_isa_refusal(int32_t i) {
    int count;
    return kvik::isa_list(&count)[i].refusal();
}

KvikModel* kvik_create(const KvikSpec* spec, const char* isa, char* error, int32_t error_size) {
    KvikModel* made = nullptr;
    guarded(error, error_size, [&] {
        if (spec->head_dim > 512 || spec->head_dim % 2)
            throw Error{"head_dim is " + std::to_string(spec->head_dim) + "; expected an even number up to 512"};
        made = new KvikModel{{*spec, kernels_or_throw(isa)}};
    });
    return made;
}

void kvik_free(KvikModel* model) { delete model; }

int32_t kvik_load(KvikModel* model, int32_t role, int32_t layer, const void* data, int32_t form, int64_t rows,
                  int64_t columns, char* error, int32_t error_size) {
    return guarded(error, error_size, [&] { model->model.load(role, layer, data, form, rows, columns); });
}

int32_t kvik_load_quantized(KvikModel* model, int32_t role, int32_t layer, const KvikQuantized* weight, char* error,
                            int32_t error_size) {
    return guarded(error, error_size, [&] { model->model.load_quantized(role, layer, *weight); });
}

int32_t kvik_allocate(KvikModel* model, int32_t num_blocks, int32_t block_size, char* error, int32_t error_size) {
    return guarded(error, error_size, [&] { model->model.allocate(num_blocks, block_size); });
}

int32_t kvik_step(KvikModel* model, const KvikPlan* plan, KvikResult* result, char* error, int32_t error_size) {
    return guarded(error, error_size, [&] { model->model.step(*plan, *result); });
}

int64_t kvik_weight_bytes(const KvikModel* model) { return model->model.weights.size(); }

int64_t kvik_kv_bytes_per_token(const KvikModel* model) {
    const KvikSpec& s = model->model.spec;
    const kvik::KvLayout kv{s.kv_form, 1, kvik::GROUP, s.num_kv_heads, s.head_dim};
    return s.num_layers * kv.layer_bytes() / kvik::GROUP;
}

int64_t kvik_activation_bytes(const KvikModel* model) {
    return model->model.activations.size() + model->model.scratch_arena.size();
}

int32_t kvik_draw(const char* isa, const KvikSamplePlan* plan, const float* logits, int32_t vocab, KvikResult* result,
                  char* error, int32_t error_size) {
    return guarded(error, error_size, [&] {
        const kvik::Kernels* kernels = kernels_or_throw(isa);
        kvik::Arena scratch;
        if (!scratch.reserve(kernels->sampler_scratch(vocab))) throw Error{"out of memory"};
        for (int32_t s = 0; s < plan->num_draws; s++)
            kernels->draw(*plan, s, logits + int64_t(plan->rows[s]) * vocab, vocab, scratch.data(), *result);
    });
}

}  // extern "C"
