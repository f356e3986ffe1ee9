/* What Python calls: the choice of a variant, and work cut into pieces that the threads of torch's OpenMP take. */
#include "kernels.h"

#include <stdatomic.h>
#include <stdlib.h>

#ifdef _WIN32
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif
#define PIECE (1 << 16)  /* bytes of weights that a thread takes at a time */

static const Variant *const VARIANTS[] = {  /* best first */
#ifdef HAS_AVX512
    &gencli_avx512,
#endif
#ifdef HAS_AVX2
    &gencli_avx2,
#endif
#ifdef HAS_NEON
    &gencli_neon,
#endif
    &gencli_plain,
};
enum { COUNT = sizeof VARIANTS / sizeof VARIANTS[0] };
static const Variant *variant = NULL;

/* GOMP_parallel of the OpenMP that torch has loaded: runs a function on all threads of its pool, and waits. */
typedef void Parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);
static Parallel *parallel = NULL;

PUBLIC int gencli_interface(void) { return INTERFACE; }

PUBLIC void gencli_set_parallel(Parallel *function) { parallel = function; }

/* The name of variant i if this CPU runs it, "" if not, NULL after the last. */
PUBLIC const char *gencli_variant(int i) { return i >= COUNT ? NULL : VARIANTS[i]->runs_here() ? VARIANTS[i]->name : ""; }

PUBLIC void gencli_choose(int i) { variant = VARIANTS[i]; }

typedef struct {
    const Weights *weights;
    const Activations *x;
    int positions;
    float *y;
    int64_t stride, end, step;
    atomic_llong next;
} Job;

static void run(Job *job, void (*work)(void *), unsigned threads) {
    if (parallel && threads != 1 && job->step < job->end - atomic_load(&job->next)) parallel(work, job, threads, 0);
    else work(job);
}

static void multiply(void *data) {
    Job *job = data;
    for (int64_t first; (first = atomic_fetch_add(&job->next, job->step)) < job->end;) {
        int64_t last = first + job->step < job->end ? first + job->step : job->end;
        variant->product(job->weights, job->x, job->positions, job->y, job->stride, first, last);
    }
}

/* Memory of the calling thread for activations: kept from call to call, as large as the largest so far. */
static void *scratch(size_t size) {
    static _Thread_local void *memory = NULL;
    static _Thread_local size_t have = 0;
    if (size > have) {
        free(memory);
        memory = malloc(size);
        have = memory ? size : 0;
    }
    return memory;
}

static int64_t rounded_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

/* y[position * outputs + output] of x (positions, inputs), positions <= MOST. threads: 0 for the pool's own number.
   Returns 0, or 1 when there is no memory. */
PUBLIC int gencli_product(const Weights *w, const float *x, int positions, float *y, unsigned threads) {
    Activations activations[MOST] = {{0}};
    int64_t inputs = w->sideways ? w->rows : w->columns, outputs = w->sideways ? w->columns : w->rows;
    int packed = w->type != 0 && w->type != 1 && w->type != 30;
    int64_t blocks = rounded_up(inputs, 256) / 32, each = blocks * (32 + 24);  /* bytes: codes, and six floats */
    uint8_t *memory = packed ? scratch((size_t)(each * positions)) : NULL;
    if (packed && !memory) return 1;
    for (int p = 0; p < positions; p++) {
        Activations *to = activations + p;
        to->x = x + p * inputs;
        if (!packed) continue;
        uint8_t *at = memory + p * each;
        memset(at + (blocks - 8) * 32, 0, 256);  /* the last group may be read as a whole */
        memset(at + blocks * 32, 0, (size_t)(blocks * 24));
        to->codes = (int8_t *)at;
        to->scales = (float *)(at + blocks * 32);
        to->sums32 = to->scales + blocks;
        to->sums16 = to->sums32 + blocks;
        to->scales16 = to->sums16 + 2 * blocks;
        variant->prepare(to, inputs);
    }
    int64_t step = w->sideways ? rounded_up(outputs / 8 + 1, 64) : PIECE / (w->stride ? w->stride : 1) + 1;
    Job job = {w, activations, positions, y, outputs, outputs, step, 0};
    run(&job, multiply, threads);
    return 0;
}

static void unpack(void *data) {
    Job *job = data;
    const Weights *w = job->weights;
    for (int64_t first; (first = atomic_fetch_add(&job->next, job->step)) < job->end;)
        for (int64_t i = first; i < first + job->step && i < job->end; i++) {
            int64_t output = w->order ? w->order[i] - job->stride : i - job->stride;
            variant->dequantise(w->type, w->data + i * w->stride, w->columns, job->y + output * w->columns);
        }
}

/* Rows first to last - 1 as float32, (last - first, columns); with an order, rows stay among these. */
PUBLIC void gencli_dequantise(const Weights *w, int64_t first, int64_t last, float *to, unsigned threads) {
    Job job = {w, NULL, 0, to, first, last, PIECE / (w->stride ? w->stride : 1) + 1, first};
    run(&job, unpack, threads);
}
