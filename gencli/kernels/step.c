/* A step of a decoder: all of its layers for some rows, new positions of one text or of several, as `models.decoder`
   computes them.

   The threads go through the layers together: they share out the outputs of every product and the heads, and wait for
   each other behind these. What is little work each does for itself, in memory of its own: x, norms, codes. */
#include "kernels.h"

#include <math.h>
#include <stdatomic.h>
#include <time.h>

#ifdef _WIN32
#include <windows.h>
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif
#ifdef __linux__
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
long syscall(long number, ...);
/* Sleeps while a number is what it was; wakes those who do. */
static void sleep_while(atomic_int *at, int was) { syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, was, NULL, NULL, 0); }
static void wake(atomic_int *at) { syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }
#elif defined(_WIN32)
static void sleep_while(atomic_int *at, int was) { (void)at, (void)was, SwitchToThread(); }
static void wake(atomic_int *at) { (void)at; }
#else
#include <pthread.h>
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static void sleep_while(atomic_int *at, int was) {
    pthread_mutex_lock(&mutex);
    while (atomic_load(at) == was) pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
}
static void wake(atomic_int *at) {
    (void)at;
    pthread_mutex_lock(&mutex);  /* none is between its look and its sleep */
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}
#endif
#if defined(__x86_64__)
#define REST() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define REST() __asm__ volatile("isb")  /* about as long as x86's pause; its own "yield" does nothing on most */
#else
#define REST() ((void)0)
#endif
#define LOOKS 2000        /* how often a thread looks for the others before it sleeps: for longer than a piece takes */
#define WORTH (1 << 20)   /* bytes of a layer's weights, times rows, from which on more threads than one gain a third */
#define SHORT (1 << 25)   /* bytes of all layers' weights, times rows, up to which one thread is done in a time slice */
#define ALONE 64          /* steps that one thread takes by itself once others were late; doubled while they are */
#define LATE 300000       /* nanoseconds of sleep that only a thread which has lost its core explains */

/* Numbers of each row, from one row to the next. */
typedef struct { float *at; int64_t step; } Rows;

/* Rows `done` to done + rows - 1 of all: positions of texts, one text after the other. */
typedef struct {
    const Model *model;
    const Place *at;
    int64_t done, rows, codes;          /* codes: bytes of the most that a product reads */
    _Alignas(64) atomic_llong next;     /* the next piece of work */
    _Alignas(64) atomic_int waiting, asleep, round, threads, failed, late;
} Step;

/* Places first to first + count - 1 of the pairs of rows and experts, sorted by expert. */
typedef struct { int32_t expert, first, count; } Group;

/* A thread's own. */
typedef struct {
    Step *step;
    int threads;
    float *x, *h, *scores;
    uint8_t *codes;
    Activations activations[CHUNK];
    int32_t expert[CHUNK];  /* of each pair of a row and an expert that computes for it */
    float share[CHUNK];
    Group group[CHUNK];
    int32_t row[CHUNK], slot[CHUNK];  /* of a place, and of a pair */
} Thread;

static int64_t hidden_of(const Step *s) { return s->model->layers[0]->hidden; }

static int64_t text_of(const Step *s, int64_t r) { return (s->done + r) / s->at->new; }

static int64_t position_of(const Step *s, int64_t r) {
    return s->at->lengths[text_of(s, r)] + (s->done + r) % s->at->new;
}

static int64_t nanoseconds(void) {
#ifdef _WIN32
    LARGE_INTEGER now, rate;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&rate);
    return (int64_t)((double)now.QuadPart / (double)rate.QuadPart * 1e9);
#else
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#endif
}

/* Waits until all threads are here. */
static void meet(Thread *t) {
    Step *s = t->step;
    int round = atomic_load(&s->round);
    if (atomic_fetch_add(&s->waiting, 1) == t->threads - 1) {
        atomic_store(&s->waiting, 0);
        atomic_store(&s->next, 0);
        atomic_store(&s->round, round + 1);
        if (atomic_load(&s->asleep)) wake(&s->round);
        return;
    }
    for (int i = 0; i < LOOKS; i++) {
        if (atomic_load(&s->round) != round) return;
        REST();
    }
    int64_t from = nanoseconds();
    atomic_fetch_add(&s->asleep, 1);
    while (atomic_load(&s->round) == round) sleep_while(&s->round, round);
    atomic_fetch_sub(&s->asleep, 1);
    if (nanoseconds() - from > LATE) atomic_store(&s->late, 1);
}

static int64_t next(Thread *t) { return atomic_fetch_add(&t->step->next, 1); }

static int64_t outputs_of(const Weights *w) { return w->sideways ? w->columns : w->rows; }

/* Makes the activations of some rows ready for products with w. */
static void prepare(Thread *t, const Weights *const *w, int count, Rows x, int64_t rows) {
    int64_t inputs = w[0]->sideways ? w[0]->rows : w[0]->columns, each = gencli_codes_size(inputs);
    int packed = 0;
    for (int i = 0; i < count; i++) packed |= gencli_is_packed(w[i]);
    for (int64_t r = 0; r < rows; r++) {
        gencli_lay_out(t->activations + r, x.at + r * x.step, inputs, packed ? t->codes + r * each : NULL);
        if (packed) gencli_prepare(t->activations + r, inputs);
    }
}

static void product(Thread *t, const Weights *w, int64_t rows, float *y, int64_t first, int64_t last) {
    gencli_chosen->product(w, t->activations, (int)rows, y, outputs_of(w), first, last);
}

/* This thread's share of the products of x with up to four matrices. */
static void products(Thread *t, const Weights *const *w, float *const *y, int count, Rows x, int64_t rows) {
    int64_t step[4], pieces[4];
    for (int i = 0; i < count; i++) step[i] = gencli_piece(w[i]), pieces[i] = (outputs_of(w[i]) + step[i] - 1) / step[i];
    prepare(t, w, count, x, rows);
    for (;;) {
        int64_t piece = next(t), last;
        int i = 0;
        while (i < count && piece >= pieces[i]) piece -= pieces[i++];
        if (i == count) break;
        last = (piece + 1) * step[i] < outputs_of(w[i]) ? (piece + 1) * step[i] : outputs_of(w[i]);
        product(t, w[i], rows, y[i], piece * step[i], last);
    }
    meet(t);
}

/* This thread's share of activation(gate) * up, or of activation(gate). */
static void gated_products(Thread *t, const Layer *l, Rows x, Rows to, float *up) {
    int64_t step = gencli_piece(l->gate_up[0]), fused = l->gated && !l->gate_up[1] ? l->inner : 0;
    int64_t rows = t->step->rows;
    prepare(t, l->gate_up, l->gate_up[1] ? 2 : 1, x, rows);
    for (int64_t first; (first = step * next(t)) < l->inner;) {
        int64_t last = first + step < l->inner ? first + step : l->inner;
        product(t, l->gate_up[0], rows, to.at, first, last);
        if (fused) product(t, l->gate_up[0], rows, to.at, fused + first, fused + last);
        else if (l->gated) product(t, l->gate_up[1], rows, up, first, last);
        for (int64_t r = 0; r < rows; r++)
            gencli_chosen->activate(l, to.at + r * to.step + first, l->gated ? up + r * to.step + first : NULL,
                                    last - first);
    }
    meet(t);
}

/* (x1, x2) of each head → (x1 cos - x2 sin, x2 cos + x1 sin); the minus is in the table */
static void rotate(float *x, int heads, int size, int rotated, const float *cos, const float *sin) {
    for (int h = 0; h < heads; h++)
        for (int i = 0; i < rotated / 2; i++) {
            float *low = x + h * size + i, *high = low + rotated / 2, a = *low, b = *high;
            *low = a * cos[i] + b * sin[i];
            *high = b * cos[i + rotated / 2] + a * sin[i + rotated / 2];
        }
}

static void normed(const Norm *norm, float *y, const float *x, int64_t count) {
    if (norm->weight) gencli_chosen->norm(norm, y, x, count);
    else if (y != x) memcpy(y, x, (size_t)count * sizeof *y);
}

/* x += norm(y); h = next norm of x */
static void add(Thread *t, const Norm *norm, const float *y, int64_t count) {
    if (norm->weight) normed(norm, t->h, y, count), y = t->h;
    for (int64_t i = 0; i < count; i++) t->x[i] += y[i];
}

/* Numbers from a text's keys to the next one's. */
static int64_t text_step(const Place *at, const Layer *l) { return l->kv_heads * at->capacity * l->head_size; }

#include "delta_step.h"

/* Queries and keys as attention wants them, and keys and values in their caches: this thread's share of the rows.
   memory: as much as queries need. */
static void place_heads(Thread *t, const Layer *l, int64_t number, Rows q, Rows k, Rows v, Rows memory) {
    const Place *at = t->step->at;
    const float *cos = at->cos[number], *sin = at->sin[number];
    for (int64_t r; (r = next(t)) < t->step->rows;) {
        int64_t position = position_of(t->step, r), by = position * l->rotated;
        int64_t start = text_of(t->step, r) * text_step(at, l) + position * l->head_size;
        float *query = q.at + r * q.step, *key = k.at + r * k.step, *value = v.at + r * v.step;
        if (l->head_gates) part_gates(l, query, memory.at + r * memory.step);
        normed(&l->q_norm, query, query, (int64_t)l->heads * l->head_size);
        if (cos) rotate(query, l->heads, l->head_size, l->rotated, cos + by, sin + by);
        if (l->reuses) continue;
        if (l->qkv[1] && !l->qkv[2]) memcpy(value, key, (size_t)(l->kv_heads * l->head_size) * sizeof *key);
        normed(&l->v_norm, value, value, (int64_t)l->kv_heads * l->head_size);
        normed(&l->k_norm, key, key, (int64_t)l->kv_heads * l->head_size);
        if (cos) rotate(key, l->kv_heads, l->head_size, l->rotated, cos + by, sin + by);
        for (int64_t head = 0; head < l->kv_heads; head++) {
            int64_t to = start + head * at->capacity * l->head_size, from = head * l->head_size;
            memcpy(at->keys[number] + to, key + from, (size_t)l->head_size * sizeof *key);
            memcpy(at->values[number] + to, value + from, (size_t)l->head_size * sizeof *value);
        }
    }
    meet(t);
}

/* This thread's share of the heads: groups of one key, or single ones where there are too few groups. */
static void attend(Thread *t, const Layer *l, int64_t number, Rows q, Rows y) {
    const Place *at = t->step->at;
    int64_t rows = t->step->rows, size = l->head_size, group = l->heads / l->kv_heads;
    int64_t each = rows * l->kv_heads < t->threads ? 1 : group, items = l->heads / each;
    for (int64_t i; (i = next(t)) < rows * items;) {
        int64_t r = i / items, position = position_of(t->step, r), head = i % items * each;
        int64_t first = l->window && position >= l->window ? position + 1 - l->window : 0;
        int64_t cached = text_of(t->step, r) * text_step(at, l) + (head / group * at->capacity + first) * size;
        for (int64_t last = head + each; head < last; head++) {
            float *query = q.at + r * q.step + head * size, *found = y.at + r * y.step + head * size;
            gencli_chosen->attend(l, head, query, at->keys[number] + cached, at->values[number] + cached,
                                  position + 1 - first, t->scores, found);
            if (l->head_gates) gencli_chosen->open_gate(found, query + l->heads * size, size);
        }
    }
    meet(t);
}

/* The experts of each row by the router's outputs, the first of equals first, and their shares. */
static void choose(Thread *t, const Layer *l, const float *outputs) {
    for (int64_t r = 0; r < t->step->rows; r++, outputs += l->count) {
        uint8_t taken[EXPERTS] = {0};
        float top = -INFINITY, sum = 0, chosen = 0, *share = t->share + r * l->chosen;
        for (int e = 0; e < l->count; e++) top = outputs[e] > top ? outputs[e] : top;
        for (int e = 0; e < l->count; e++) sum += expf(outputs[e] - top);
        for (int j = 0; j < l->chosen; j++) {
            int best = -1;
            for (int e = 0; e < l->count; e++)
                if (!taken[e] && (best < 0 || outputs[e] > outputs[best])) best = e;
            taken[best] = 1;
            t->expert[r * l->chosen + j] = best;
            chosen += share[j] = expf(outputs[best] - top);
        }
        for (int j = 0; j < l->chosen; j++) {
            share[j] /= l->normalised ? chosen : sum;
            if (l->expert_scales) share[j] *= l->expert_scales[t->expert[r * l->chosen + j]];
        }
    }
}

/* Sorts the pairs of rows and experts by expert, so that rows of one expert share a product: `t->group` says where each
   expert's begin, and `t->row` and `t->slot` which row a place is of and which place a pair has. Returns the groups. */
static int sort_pairs(Thread *t, const Layer *l, int64_t pairs) {
    int32_t begins[EXPERTS + 1] = {0};
    int groups = 0;
    for (int64_t i = 0; i < pairs; i++) begins[t->expert[i] + 1]++;
    for (int e = 0; e < l->count; e++) {
        if (begins[e + 1]) t->group[groups++] = (Group){e, begins[e], begins[e + 1]};
        begins[e + 1] += begins[e];
    }
    for (int64_t i = 0; i < pairs; i++) {
        int32_t slot = begins[t->expert[i]]++;
        t->slot[i] = slot;
        t->row[slot] = (int32_t)(i / l->chosen);
    }
    return groups;
}

/* Chooses the experts of each row of x, which is t->h. What a norm of the router's own gives lies there for a while. */
static void route(Thread *t, const Layer *l, Rows x, float *outputs) {
    int64_t n = t->step->rows;
    if (l->before_router.weight) normed(&l->before_router, t->h, t->x, n * l->hidden);
    products(t, &l->router, &outputs, 1, x, n);
    choose(t, l, outputs);
    if (l->before_router.weight) normed(&l->before_mlp, t->h, t->x, n * l->hidden);
}

/* This thread's share of out (rows, hidden) = the sum of what the chosen experts give for x, times their shares. Memory
   for each row: the router's outputs, then for each of its experts gate, up and what it gives. */
static void mixture(Thread *t, const Layer *l, Rows x, float *memory, float *out) {
    int64_t n = t->step->rows, pairs = n * l->chosen;
    float *outputs = memory, *gate = outputs + n * l->count, *up = gate + pairs * l->inner, *given = up + pairs * l->inner;
    route(t, l, x, outputs);
    int groups = sort_pairs(t, l, pairs);

    const Weights *const *of = l->experts;
    Activations sorted[CHUNK];
    int64_t step = gencli_piece(of[0]), pieces = (l->inner + step - 1) / step;
    prepare(t, of, 2, x, n);
    for (int64_t i = 0; i < pairs; i++) sorted[i] = t->activations[t->row[i]];
    for (int64_t i; (i = next(t)) < groups * pieces;) {
        Group g = t->group[i / pieces];
        int64_t first = i % pieces * step, last = first + step < l->inner ? first + step : l->inner;
        float *to = gate + g.first * l->inner, *other = up + g.first * l->inner;
        of = l->experts + 3 * g.expert;
        gencli_chosen->product(of[0], sorted + g.first, g.count, to, l->inner, first, last);
        gencli_chosen->product(of[1], sorted + g.first, g.count, other, l->inner, first, last);
        for (int r = 0; r < g.count; r++, to += l->inner, other += l->inner)
            gencli_chosen->activate(l, to + first, other + first, last - first);
    }
    meet(t);

    of = l->experts + 2;
    step = gencli_piece(of[0]), pieces = (l->hidden + step - 1) / step;
    prepare(t, of, 1, (Rows){gate, l->inner}, pairs);
    for (int64_t i; (i = next(t)) < groups * pieces;) {
        Group g = t->group[i / pieces];
        int64_t first = i % pieces * step, last = first + step < l->hidden ? first + step : l->hidden;
        of = l->experts + 3 * g.expert + 2;
        gencli_chosen->product(of[0], t->activations + g.first, g.count, given + g.first * l->hidden, l->hidden, first,
                               last);
    }
    meet(t);

    for (int64_t r; (r = next(t)) < n;)
        for (int64_t i = 0; i < l->hidden; i++) {
            float sum = 0;
            for (int64_t j = r * l->chosen; j < (r + 1) * l->chosen; j++)
                sum += t->share[j] * given[t->slot[j] * l->hidden + i];
            out[r * l->hidden + i] = sum;
        }
    meet(t);
}

/* Adds to out (rows, hidden), behind a norm of each, what the experts beside the network give, in some memory: hidden
   numbers for each row, and what `mixture` wants. */
static void add_beside(Thread *t, const Layer *l, float *memory, float *out) {
    int64_t n = t->step->rows, hidden = l->hidden;
    normed(&l->beside->before_mlp, t->h, t->x, n * hidden);
    mixture(t, l->beside, (Rows){t->h, hidden}, memory + n * hidden, memory);
    for (int64_t r; (r = next(t)) < n;) {
        float *found = memory + r * hidden, *y = out + r * hidden;
        normed(&l->after_network, y, y, hidden);
        normed(&l->beside->after_mlp, found, found, hidden);
        for (int64_t i = 0; i < hidden; i++) y[i] += found[i];
    }
    meet(t);
}

/* Numbers of a row that all layers have of their own. */
static int64_t inputs_of(const Model *m) { return m->inputs ? m->count * m->inputs->size : 0; }

/* This thread's share of what layers have of their own: (rows, layers, size). */
static void look_up(Thread *t, float *own) {
    const Inputs *in = t->step->model->inputs;
    int64_t n = t->step->rows, each = inputs_of(t->step->model);
    float *found = own + n * each;
    products(t, &in->projection, &own, 1, (Rows){t->x, hidden_of(t->step)}, n);
    for (int64_t r; (r = next(t)) < n;) {
        float *y = own + r * each, *x = found + r * each;
        const uint8_t *row = in->embedding->data + t->step->at->ids[t->step->done + r] * in->embedding->stride;
        gencli_chosen->dequantise(in->embedding->type, row, each, x);
        for (int64_t i = 0; i < each; i++) y[i] *= in->by;
        normed(&in->norm, y, y, each);
        for (int64_t i = 0; i < each; i++) y[i] = (y[i] + x[i] * in->scale) * 0.70710678f;
    }
    meet(t);
}

/* Adds to x what a layer makes of its own numbers, `own` (rows, layers, size) of all layers. Memory for each row: size. */
static void add_input(Thread *t, const Layer *l, const float *own, float *memory, float *out) {
    const Model *m = t->step->model;
    const LayerInput *in = l->input;
    int64_t n = t->step->rows, size = m->inputs->size, step = gencli_piece(in->gate);
    prepare(t, &in->gate, 1, (Rows){t->x, l->hidden}, n);
    for (int64_t first; (first = step * next(t)) < size;) {
        int64_t last = first + step < size ? first + step : size;
        product(t, in->gate, n, memory, first, last);
        for (int64_t r = 0; r < n; r++)
            gencli_chosen->activate(l, memory + r * size + first, own + r * inputs_of(m) + first, last - first);
    }
    meet(t);
    products(t, &in->projection, &out, 1, (Rows){memory, size}, n);
    add(t, &in->after, out, n * l->hidden);
}

/* out (rows, hidden) = attention of h. Memory for each row: qkv and the result of the heads. */
static void attention(Thread *t, const Layer *l, int64_t number, Rows h, float *memory, float *out) {
    int64_t n = t->step->rows, found = (int64_t)l->heads * l->head_size, q_size = l->head_gates ? 2 * found : found;
    int64_t kv_size = (int64_t)l->kv_heads * l->head_size, fused = l->qkv[1] || l->reuses ? 0 : q_size + 2 * kv_size;
    Rows q = {memory, fused ? fused : q_size};
    Rows k = {memory + (fused ? q_size : n * q_size), fused ? fused : kv_size};
    Rows v = {k.at + (fused ? kv_size : n * kv_size), k.step}, mixed = {memory + n * (q_size + 2 * kv_size), found};
    float *qkv[3] = {q.at, k.at, v.at};
    int separate = 1 + !!l->qkv[1] + !!l->qkv[2];
    products(t, l->qkv, qkv, separate, h, n);
    place_heads(t, l, number, q, k, v, mixed);
    attend(t, l, number, q, mixed);
    products(t, &l->o, &out, 1, mixed, n);
}

/* x (rows, hidden) → x after a layer. The threads' common memory, for each row of at most CHUNK: what layers have of
   their own, hidden, then what `attention` or `delta_net` want, or gate and up, or what `mixture`, `add_beside` or
   `add_input` want. */
static void one_layer(Thread *t, int64_t number) {
    const Layer *l = t->step->model->layers[number];
    int64_t n = t->step->rows, all = n * l->hidden;
    float *own = t->step->at->memory, *out = own + n * inputs_of(t->step->model), *inner = out + all;
    Rows h = {t->h, l->hidden};

    normed(&l->before_attention, t->h, t->x, all);
    (l->delta ? delta_net : attention)(t, l, number, h, inner, out);
    add(t, &l->after_attention, out, all);

    int both = l->gated && !l->gate_up[1];
    Rows gate = {inner, both ? 2 * l->inner : l->inner};
    normed(&l->before_mlp, t->h, t->x, all);
    if (l->experts) mixture(t, l, h, inner, out);
    else {
        gated_products(t, l, h, gate, both ? inner + l->inner : inner + n * l->inner);
        products(t, &l->down, &out, 1, gate, n);
    }
    if (l->share) share_out(t, l, h, inner, out);
    if (l->beside) add_beside(t, l, inner, out);
    add(t, &l->after_mlp, out, all);
    if (l->input) add_input(t, l, own + number * t->step->model->inputs->size, inner, out);
    for (int64_t i = 0; l->output_scale && i < all; i++) t->x[i] *= *l->output_scale;
}

static void embed(Thread *t) {
    const Step *s = t->step;
    const Weights *tokens = s->model->embedding, *positions = s->model->positions;
    int64_t hidden = hidden_of(s);
    if (!tokens) {
        memcpy(t->x, s->at->x + s->done * hidden, (size_t)(s->rows * hidden) * sizeof *t->x);
        return;
    }
    for (int64_t r = 0; r < s->rows; r++) {
        float *x = t->x + r * hidden;
        gencli_chosen->dequantise(tokens->type, tokens->data + s->at->ids[s->done + r] * tokens->stride, hidden, x);
        for (int64_t i = 0; i < hidden && s->model->scale != 1; i++) x[i] *= s->model->scale;
        if (!positions) continue;
        gencli_chosen->dequantise(positions->type, positions->data + position_of(s, r) * positions->stride, hidden, t->h);
        for (int64_t i = 0; i < hidden; i++) x[i] += t->h[i];
    }
}

/* This thread's share of the logits. */
static void head(Thread *t) {
    const Step *s = t->step;
    const Weights *w = s->model->head;
    int64_t hidden = hidden_of(s), every = s->at->last ? s->at->new : 1, rows = 0;
    for (int64_t r = 0; r < s->rows; r++)
        if ((s->done + r + 1) % every == 0) normed(&s->model->norm, t->h + hidden * rows++, t->x + r * hidden, hidden);
    float *logits = s->at->logits + s->done / every * outputs_of(w);
    products(t, &w, &logits, 1, (Rows){t->h, hidden}, rows);
}

/* All of it, by each thread of the pool. */
static void run(void *data) {
    Step *s = data;
    Thread t = {.step = s, .threads = gencli_team()};
    int number = atomic_fetch_add(&s->threads, 1);
    int64_t all = s->rows * hidden_of(s), floats = 2 * all + s->at->capacity;
    if ((t.x = gencli_scratch((size_t)(floats * (int64_t)sizeof *t.x + s->codes)))) {
        t.h = t.x + all;
        t.scores = t.h + all;
        t.codes = (uint8_t *)(t.x + floats);
        embed(&t);
    } else atomic_store(&s->failed, 1);
    meet(&t);
    if (atomic_load(&s->failed)) return;
    if (s->model->inputs) look_up(&t, s->at->memory);
    for (int64_t i = 0; i < s->model->count; i++) one_layer(&t, i);
    if (s->model->head) head(&t);
    else if (!number) memcpy(s->at->x + s->done * hidden_of(s), t.x, (size_t)all * sizeof *t.x);
}

/* Where other programs keep a core busy, a thread may lose it for a time slice, and all the others wait: some fifty times
   longer than a piece takes. A short step is then sooner done by one thread. */
static atomic_int lateness, alone, next_alone = ALONE;

/* The threads of a step: 1, or 0 for all. */
static unsigned threads_for(int64_t layer, int64_t all) {
    if (layer <= WORTH) return 1;
    if (all > SHORT || atomic_load(&alone) <= 0) return 0;
    atomic_fetch_sub(&alone, 1);
    return 1;
}

/* Learns from a short step of all threads. Lateness is a share of the last steps, some eight, in 1/256. */
static void learn(int late) {
    int was = atomic_load(&lateness), now = was - was / 8 + 32 * late, next = atomic_load(&next_alone);
    if (now > 48) {  /* two late ones close to each other */
        atomic_store(&alone, next);
        atomic_store(&next_alone, next < 16 * ALONE ? 2 * next : next);
        now = 24;  /* the next late one is enough */
    } else if (now < 8) atomic_store(&next_alone, ALONE);
    atomic_store(&lateness, now);
}

static void look_at(const Weights *w, int64_t *inputs, int64_t *bytes) {
    if (!w) return;
    int64_t of_it = w->sideways ? w->rows : w->columns;
    *inputs = of_it > *inputs ? of_it : *inputs;
    *bytes += w->rows * w->stride;
}

static void look_at_delta(const Delta *d, int64_t *inputs, int64_t *bytes) {
    look_at(d->z, inputs, bytes);
    look_at(d->b, inputs, bytes);
    look_at(d->a, inputs, bytes);
}

/* The same of those of a layer's experts that compute for a row. codes: bytes of what they read of a row. */
static void look_at_experts(const Layer *l, int64_t *inputs, int64_t *bytes, int64_t *codes) {
    int64_t inner = 0, each = 0;
    look_at(l->router, inputs, bytes);
    for (int i = 0; i < 3; i++) look_at(l->experts[i], i < 2 ? inputs : &inner, &each);
    *bytes += each * l->chosen;
    int64_t read = l->chosen * gencli_codes_size(inner);
    *codes = read > *codes ? read : *codes;
}

/* Whether all ids and positions have their rows. */
static int is_within(const Model *m, const Place *at) {
    for (int64_t b = 0; b < at->texts; b++) {
        int64_t end = at->lengths[b] + at->new;
        if (at->lengths[b] < 0 || end > at->capacity || (m->positions && end > m->positions->rows)) return 0;
    }
    for (int64_t i = 0; m->embedding && i < at->texts * at->new; i++)
        if (at->ids[i] < 0 || at->ids[i] >= m->embedding->rows) return 0;
    for (int64_t i = 0; m->inputs && i < at->texts * at->new; i++)
        if (at->ids[i] < 0 || at->ids[i] >= m->inputs->embedding->rows) return 0;
    return 1;
}

/* Keys and values of the new positions are written into the caches, and the lengths grow. Returns 0; 1 when there is no
   memory; 2 for an id or a position that the model or the cache does not have. */
PUBLIC int gencli_step(const Model *m, const Place *at) {
    int64_t inputs = 0, bytes = 0, codes = 0, chosen = 1, all = at->texts * at->new;
    if (!is_within(m, at)) return 2;
    for (int64_t i = 0; i < m->count; i++) {
        const Layer *l = m->layers[i];
        for (int j = 0; j < 3; j++) look_at(l->qkv[j], &inputs, &bytes);
        for (int j = 0; j < 2; j++) look_at(l->gate_up[j], &inputs, &bytes);
        look_at(l->o, &inputs, &bytes);
        look_at(l->down, &inputs, &bytes);
        const Layer *mixed = l->beside ? l->beside : l;
        if (mixed->experts) look_at_experts(mixed, &inputs, &bytes, &codes);
        if (mixed->experts && mixed->chosen > chosen) chosen = mixed->chosen;
        if (l->delta) look_at_delta(l->delta, &inputs, &bytes);
        if (l->input) look_at(l->input->gate, &inputs, &bytes);
        if (l->input) look_at(l->input->projection, &inputs, &bytes);
    }
    if (m->inputs) look_at(m->inputs->projection, &inputs, &bytes);
    codes = gencli_codes_size(inputs) > codes ? gencli_codes_size(inputs) : codes;
    int64_t most = CHUNK / chosen;  /* rows: a row's experts have activations each */
    for (int64_t done = 0; done < all; done += most) {
        int64_t rows = all - done < most ? all - done : most;
        Step step = {.model = m, .at = at, .done = done, .rows = rows, .codes = rows * codes};
        unsigned threads = threads_for(bytes / m->count * rows, bytes * rows);
        gencli_run(run, &step, threads);
        if (step.failed) return 1;
        if (!threads && bytes * rows <= SHORT) learn(step.late);
    }
    for (int64_t b = 0; b < at->texts; b++) at->lengths[b] += at->new;
    return 0;
}
