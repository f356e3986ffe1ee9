/* A step of a decoder: all of its layers for some rows, new positions of one text or of several, as `models.decoder`
   computes them. */
#include "kernels.h"

#include <stdatomic.h>

#ifdef _WIN32
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

/* Numbers of each row, from one row to the next. */
typedef struct { float *at; int64_t step; } Rows;

typedef struct {
    const Layer *layer;
    const Place *place;
    const float *keys, *values;
    Rows q, y;
    atomic_llong next, failed;
} Heads;

/* The first position that one attends to. */
static int64_t first_of(const Layer *l, int64_t position) {
    return l->window && position >= l->window ? position + 1 - l->window : 0;
}

static void attend(void *data) {
    Heads *job = data;
    const Layer *l = job->layer;
    const Place *at = job->place;
    int64_t size = l->head_size, group = l->heads / l->kv_heads;
    float *scores = gencli_scratch((size_t)at->capacity * sizeof *scores);
    if (!scores) job->failed = 1;
    for (int64_t i; (i = atomic_fetch_add(&job->next, 1)) < at->rows * l->kv_heads && scores;) {
        int64_t row = i / l->kv_heads, k = i % l->kv_heads, first = first_of(l, at->positions[row]);
        int64_t cached = at->starts[row] + (k * at->capacity + first) * size;
        for (int64_t head = k * group; head < (k + 1) * group; head++)
            gencli_chosen->attend(l, job->q.at + row * job->q.step + head * size, job->keys + cached,
                                  job->values + cached, at->positions[row] + 1 - first, scores,
                                  job->y.at + row * job->y.step + head * size);
    }
}

/* (x1, x2) of each head → (x1 cos - x2 sin, x2 cos + x1 sin); the minus is in the table */
static void rotate(Rows x, int64_t rows, int heads, int size, int rotated, const float *cos, const float *sin) {
    for (int64_t r = 0; r < rows; r++, x.at += x.step, cos += rotated, sin += rotated)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < rotated / 2; i++) {
                float *low = x.at + h * size + i, *high = low + rotated / 2, a = *low, b = *high;
                *low = a * cos[i] + b * sin[i];
                *high = b * cos[i + rotated / 2] + a * sin[i + rotated / 2];
            }
}

static void add(float *x, const float *y, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] += y[i];
}

static void normed(const Norm *norm, float *y, const float *x, int64_t count) {
    if (norm->weight) gencli_chosen->norm(norm, y, x, count);
    else if (y != x) memcpy(y, x, (size_t)count * sizeof *y);
}

static void keep(const Layer *l, Rows from, float *cache, const Place *at) {
    for (int64_t r = 0; r < at->rows; r++)
        for (int64_t k = 0; k < l->kv_heads; k++)
            memcpy(cache + at->starts[r] + (k * at->capacity + at->positions[r]) * l->head_size,
                   from.at + r * from.step + k * l->head_size, (size_t)l->head_size * sizeof *cache);
}

/* x (rows, hidden) → x after a layer. memory, for each row: 2 * hidden, then qkv and the result of the heads, or gate and
   up. */
static int one_layer(const Layer *l, int number, float *x, float *memory, const Place *at) {
    int64_t n = at->rows, all = n * l->hidden, q_size = (int64_t)l->heads * l->head_size;
    int64_t kv_size = (int64_t)l->kv_heads * l->head_size, fused = l->qkv[1] ? 0 : q_size + 2 * kv_size;
    float *h = memory, *out = h + all, *inner = out + all;
    Rows q = {inner, fused ? fused : q_size};
    Rows k = {inner + (fused ? q_size : n * q_size), fused ? fused : kv_size};
    Rows v = {k.at + (fused ? kv_size : n * kv_size), k.step}, mixed = {inner + n * (q_size + 2 * kv_size), q_size};
    float *qkv[3] = {q.at, k.at, v.at};
    int failed = 0;

    normed(&l->before_attention, h, x, all);
    failed |= gencli_products(l->qkv, qkv, fused ? 1 : 3, h, n, 0);
    for (int64_t r = 0; r < n; r++) {
        normed(&l->q_norm, q.at + r * q.step, q.at + r * q.step, q_size);
        normed(&l->k_norm, k.at + r * k.step, k.at + r * k.step, kv_size);
    }
    if (at->cos[number]) {
        rotate(q, n, l->heads, l->head_size, l->rotated, at->cos[number], at->sin[number]);
        rotate(k, n, l->kv_heads, l->head_size, l->rotated, at->cos[number], at->sin[number]);
    }
    keep(l, k, at->keys[number], at);
    keep(l, v, at->values[number], at);
    Heads job = {l, at, at->keys[number], at->values[number], q, mixed, 0, 0};
    int64_t work = 0;
    for (int64_t r = 0; r < n; r++) work += at->positions[r] + 1 - first_of(l, at->positions[r]);
    gencli_run(attend, &job, work > 128 ? 0 : 1);
    failed |= (int)job.failed | gencli_products(&l->o, &out, 1, mixed.at, n, 0);
    normed(&l->after_attention, out, out, all);
    add(x, out, all);

    int both = l->gated && !l->gate_up[1];
    Rows gate = {inner, both ? 2 * l->inner : l->inner};
    float *halves[2] = {inner, inner + n * l->inner}, *up = both ? inner + l->inner : halves[1];
    normed(&l->before_mlp, h, x, all);
    failed |= gencli_products(l->gate_up, halves, l->gate_up[1] ? 2 : 1, h, n, 0);
    for (int64_t r = 0; r < n; r++) {
        float *to = inner + r * l->inner, *from = gate.at + r * gate.step;
        gencli_chosen->activate(l->activation, from, l->gated ? up + r * gate.step : NULL, l->inner);
        if (to != from) memmove(to, from, (size_t)l->inner * sizeof *to);  /* rows one after the other again */
    }
    failed |= gencli_products(&l->down, &out, 1, inner, n, 0);
    normed(&l->after_mlp, out, out, all);
    add(x, out, all);
    return failed;
}

/* x (rows, hidden): of the embedding → after the last layer; keys and values of the rows are written into the caches.
   memory: floats as `one_layer` wants them. Returns 0, or 1 when there is no memory. */
PUBLIC int gencli_step(const Layer *const *layers, int count, float *x, float *memory, const Place *at) {
    int failed = 0;
    for (int i = 0; i < count; i++) failed |= one_layer(layers[i], i, x, memory, at);
    return failed;
}
