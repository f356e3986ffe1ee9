/* A step of a decoder: all of its layers for one new position of one sequence, as `models.decoder` computes them. */
#include "kernels.h"

#include <stdatomic.h>

#ifdef _WIN32
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

typedef struct {
    const Layer *layer;
    const float *q, *keys, *values;
    int64_t count, capacity, step;
    float *scores, *y;
    atomic_llong next;
} Heads;

static void attend(void *data) {
    Heads *job = data;
    const Layer *layer = job->layer;
    int64_t size = layer->head_size, group = layer->heads / layer->kv_heads;
    for (int64_t k; (k = atomic_fetch_add(&job->next, 1)) < layer->kv_heads;)
        for (int64_t head = k * group; head < (k + 1) * group; head++)
            gencli_chosen->attend(layer, job->q + head * size, job->keys + k * job->capacity * size,
                                  job->values + k * job->capacity * size, job->count, job->scores + head * job->step,
                                  job->y + head * size);
}

/* (x1, x2) of each head → (x1 cos - x2 sin, x2 cos + x1 sin); the minus is in the table */
static void rotate(float *x, int heads, int size, int rotated, const float *cos, const float *sin) {
    for (int h = 0; h < heads; h++, x += size)
        for (int i = 0; i < rotated / 2; i++) {
            float a = x[i], b = x[i + rotated / 2];
            x[i] = a * cos[i] + b * sin[i];
            x[i + rotated / 2] = b * cos[i + rotated / 2] + a * sin[i + rotated / 2];
        }
}

static void add(float *x, const float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] += y[i];
}

static void normed(const Norm *norm, float *y, const float *x, int64_t count) {
    if (norm->weight) gencli_chosen->norm(norm, y, x, count);
    else if (y != x) memcpy(y, x, (size_t)count * sizeof *y);
}

/* x (hidden,) → x after a layer. memory: 2 * hidden, then qkv and the result of the heads, or gate and up; scores. */
static int one_layer(const Layer *l, int number, float *x, float *memory, float *scores, const Place *at) {
    int64_t q_size = (int64_t)l->heads * l->head_size, kv_size = (int64_t)l->kv_heads * l->head_size;
    float *h = memory, *out = h + l->hidden, *q = out + l->hidden, *k = q + q_size, *v = k + kv_size;
    float *mixed = v + kv_size, *qkv[3] = {q, k, v};
    int failed = 0;

    normed(&l->before_attention, h, x, l->hidden);
    failed |= gencli_products(l->qkv, qkv, l->qkv[1] ? 3 : 1, h, 1, 0);
    normed(&l->q_norm, q, q, q_size);
    normed(&l->k_norm, k, k, kv_size);
    if (at->cos[number]) {
        rotate(q, l->heads, l->head_size, l->rotated, at->cos[number], at->sin[number]);
        rotate(k, l->kv_heads, l->head_size, l->rotated, at->cos[number], at->sin[number]);
    }
    for (int i = 0; i < l->kv_heads; i++) {
        int64_t to = (i * at->capacity + at->position) * l->head_size;
        memcpy(at->keys[number] + to, k + i * l->head_size, (size_t)l->head_size * sizeof *k);
        memcpy(at->values[number] + to, v + i * l->head_size, (size_t)l->head_size * sizeof *v);
    }
    int64_t count = at->position + 1, first = l->window && count > l->window ? count - l->window : 0;
    Heads job = {l, q, at->keys[number] + first * l->head_size, at->values[number] + first * l->head_size, count - first,
                 at->capacity, at->capacity, scores, mixed, 0};
    gencli_run(attend, &job, count - first > 128 ? 0 : 1);
    failed |= gencli_products(&l->o, &out, 1, mixed, 1, 0);
    normed(&l->after_attention, out, out, l->hidden);
    add(x, out, l->hidden);

    float *gate = q, *up = l->gated ? q + l->inner : NULL, *both[2] = {gate, up};
    normed(&l->before_mlp, h, x, l->hidden);
    failed |= gencli_products(l->gate_up, both, l->gate_up[1] ? 2 : 1, h, 1, 0);
    gencli_chosen->activate(l->activation, gate, up, l->inner);
    failed |= gencli_products(&l->down, &out, 1, gate, 1, 0);
    normed(&l->after_mlp, out, out, l->hidden);
    add(x, out, l->hidden);
    return failed;
}

/* x (hidden,): of the embedding → after the last layer; keys and values of the position are written into the caches.
   memory: floats as `one_layer` wants them. Returns 0, or 1 when there is no memory. */
PUBLIC int gencli_step(const Layer *const *layers, int count, float *x, float *memory, float *scores, const Place *at) {
    int failed = 0;
    for (int i = 0; i < count; i++) failed |= one_layer(layers[i], i, x, memory, scores, at);
    return failed;
}
