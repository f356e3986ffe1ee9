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
#define WORTH (1 << 19)  /* bytes of weights, times positions, from which on waking a second thread gains a third */

static const Variant *const VARIANTS[] = {  /* best first */
#ifdef HAS_AVX512
    &gencli_avx512,
#endif
#ifdef HAS_AVX2
    &gencli_avx2,
#endif
#ifdef HAS_DOTPROD
    &gencli_dotprod,
#endif
#ifdef HAS_NEON
    &gencli_neon,
#endif
    &gencli_plain,
};
enum { COUNT = sizeof VARIANTS / sizeof VARIANTS[0] };
const Variant *gencli_chosen = NULL;

/* GOMP_parallel of the OpenMP that torch has loaded: runs a function on all threads of its pool, and waits. And
   omp_get_num_threads, which says how many run it. */
typedef void Parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);
typedef int Team(void);
static Parallel *parallel = NULL;
static Team *team = NULL;

PUBLIC int gencli_interface(void) { return INTERFACE; }

PUBLIC void gencli_set_parallel(Parallel *function, Team *threads) { parallel = function, team = threads; }

/* The name of variant i if this CPU runs it, "" if not, NULL after the last. */
PUBLIC const char *gencli_variant(int i) { return i >= COUNT ? NULL : VARIANTS[i]->runs_here() ? VARIANTS[i]->name : ""; }

PUBLIC void gencli_choose(int i) { gencli_chosen = VARIANTS[i]; }

void gencli_run(void (*work)(void *), void *data, unsigned threads) {
    if (parallel && threads != 1) parallel(work, data, threads, 0);
    else work(data);
}

int gencli_team(void) { return parallel && team ? team() : 1; }

/* Memory of the calling thread: kept from call to call, as large as the largest so far. */
void *gencli_scratch(size_t size) {
    static _Thread_local void *memory = NULL;
    static _Thread_local size_t have = 0;
    if (size > have) {
        free(memory);
        memory = malloc(size);
        have = memory ? size : 0;
    }
    return memory;
}

/* Products of some positions with a matrix, cut into pieces. */
typedef struct {
    const Weights *weights;
    float *y;
    const Activations *x;
    int positions;
    atomic_llong next;
} Products;

static int64_t outputs_of(const Weights *w) { return w->sideways ? w->columns : w->rows; }

static void multiply(void *data) {
    Products *job = data;
    const Weights *w = job->weights;
    int64_t outputs = outputs_of(w), step = gencli_piece(w);
    for (int64_t first; (first = step * atomic_fetch_add(&job->next, 1)) < outputs;) {
        int64_t last = first + step < outputs ? first + step : outputs;
        gencli_chosen->product(w, job->x, job->positions, job->y, outputs, first, last);
    }
}

static int64_t rounded_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }

int64_t gencli_piece(const Weights *w) {
    if (w->sideways) return rounded_up(outputs_of(w) / 8 + 1, 64);
    return rounded_up(PIECE / (w->stride ? w->stride : 1) + 1, 8);
}

int gencli_is_packed(const Weights *w) { return w->type != 0 && w->type != 1 && w->type != 30; }

static int64_t blocks_of(int64_t inputs) { return rounded_up(inputs, 256) / 32; }

int64_t gencli_codes_size(int64_t inputs) { return blocks_of(inputs) * (32 + 64 + 28); }  /* codes, and seven floats */

void gencli_lay_out(Activations *to, const float *x, int64_t inputs, uint8_t *memory) {
    int64_t blocks = blocks_of(inputs);
    to->x = x;
    if (!memory) return;
    to->codes = (int8_t *)memory;
    to->fine = (int16_t *)(memory + blocks * 32);
    to->scales = (float *)(memory + blocks * 96);
    to->sums32 = to->scales + blocks;
    to->sums16 = to->sums32 + blocks;
    to->scales16 = to->sums16 + 2 * blocks;
    to->fine_scales = to->scales16 + 2 * blocks;
}

void gencli_prepare(Activations *to, int64_t inputs) {
    int64_t blocks = blocks_of(inputs);
    memset(to->codes + (blocks - 8) * 32, 0, 256);  /* the last group may be read as a whole */
    memset(to->fine + (blocks - 8) * 32, 0, 512);
    memset(to->scales, 0, (size_t)(blocks * 28));
    gencli_chosen->prepare(to, inputs);
}

typedef struct {
    Activations *all;
    int64_t positions, inputs;
    atomic_llong next;
} Preparing;

static void prepare(void *data) {
    Preparing *job = data;
    for (int64_t p; (p = atomic_fetch_add(&job->next, 1)) < job->positions;) gencli_prepare(job->all + p, job->inputs);
}

/* Products of at most CHUNK positions, for which `job` is filled in but for the activations. */
static int products_of_some(Products *job, const float *x, int64_t inputs, unsigned threads) {
    Activations activations[CHUNK] = {{0}};
    int64_t each = gencli_codes_size(inputs), work = job->weights->rows * job->weights->stride * job->positions;
    int packed = gencli_is_packed(job->weights);
    uint8_t *memory = packed ? gencli_scratch((size_t)(each * job->positions)) : NULL;
    if (packed && !memory) return 1;
    for (int p = 0; p < job->positions; p++)
        gencli_lay_out(activations + p, x + p * inputs, inputs, memory ? memory + p * each : NULL);
    Preparing preparing = {activations, job->positions, inputs, 0};
    if (packed) gencli_run(prepare, &preparing, job->positions * inputs > PIECE ? threads : 1);
    job->x = activations;
    gencli_run(multiply, job, work > WORTH ? threads : 1);
    return 0;
}

/* y[position * outputs + output] of x (positions, inputs). threads: 0 for the pool's own number.
   Returns 0, or 1 when there is no memory. */
PUBLIC int gencli_product(const Weights *w, const float *x, int64_t positions, float *y, unsigned threads) {
    int64_t inputs = w->sideways ? w->rows : w->columns;
    int failed = 0;
    for (int64_t done = 0; done < positions; done += CHUNK) {
        int now = (int)(positions - done < CHUNK ? positions - done : CHUNK);
        Products job = {w, y + done * outputs_of(w), NULL, now, 0};
        failed |= products_of_some(&job, x + done * inputs, inputs, threads);
    }
    return failed;
}

typedef struct {
    const Weights *weights;
    float *to;
    int64_t first, last, step;
    atomic_llong next;
} Unpacking;

static void unpack(void *data) {
    Unpacking *job = data;
    const Weights *w = job->weights;
    for (int64_t at; (at = atomic_fetch_add(&job->next, job->step)) < job->last;)
        for (int64_t i = at; i < at + job->step && i < job->last; i++)
            gencli_chosen->dequantise(w->type, w->data + i * w->stride, w->columns, job->to + (i - job->first) * w->columns);
}

/* Rows first to last - 1 as float32, (last - first, columns), as they lie: without an order. */
PUBLIC void gencli_dequantise(const Weights *w, int64_t first, int64_t last, float *to, unsigned threads) {
    Unpacking job = {w, to, first, last, PIECE / (w->stride ? w->stride : 1) + 1, first};
    gencli_run(unpack, &job, job.step < last - first ? threads : 1);
}

typedef struct {
    int type;
    const float *x;
    int64_t rows, columns, step;
    uint8_t *to;
    int64_t stride;
    atomic_llong next;
    atomic_int failed;
} Packing;

static void pack(void *data) {
    Packing *job = data;
    for (int64_t at; (at = atomic_fetch_add(&job->next, job->step)) < job->rows;)
        for (int64_t i = at; i < at + job->step && i < job->rows; i++)
            if (gencli_chosen->pack(job->type, job->x + i * job->columns, job->columns, job->to + i * job->stride))
                job->failed = 1;
}

/* Rows of float32 (rows, columns) packed, `stride` bytes each. Returns 0, or 1 for numbers that the type cannot hold. */
PUBLIC int gencli_pack(int type, const float *x, int64_t rows, int64_t columns, uint8_t *to, int64_t stride,
                       unsigned threads) {
    Packing job = {type, x, rows, columns, PIECE / (columns ? columns : 1) / 4 + 1, to, stride, 0, 0};
    gencli_run(pack, &job, job.step < rows ? threads : 1);
    return job.failed;
}
