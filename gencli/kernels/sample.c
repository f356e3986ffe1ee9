/* The next token of one text: top-k, temperature, top-p and min-p, in that order, as `text.sampling` has them. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>

#ifdef _WIN32
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif
#define MOST 1024  /* candidates */

typedef struct { float logit, mass; int64_t id; } Candidate;

/* Whether a is less likely than b: of equals the higher id. */
static int is_below(const Candidate *a, const Candidate *b) {
    return a->logit < b->logit || (a->logit == b->logit && a->id > b->id);
}

/* Lets a candidate sink to its place in a heap, on top of which the least likely is. */
static void sink(Candidate *heap, int at, int count) {
    Candidate one = heap[at];
    for (int child; (child = 2 * at + 1) < count; heap[at] = heap[child], at = child) {
        if (child + 1 < count && is_below(heap + child + 1, heap + child)) child++;
        if (!is_below(heap + child, &one)) break;
    }
    heap[at] = one;
}

/* The likeliest first. */
static int by_likelihood(const void *a, const void *b) { return is_below(a, b) - is_below(b, a); }

static int by_id(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* The `count` likeliest, first the likeliest. Returns 1 for a logit that is no number. */
static int likeliest(const float *logits, int64_t size, Candidate *found, int count) {
    int wrong = 0;
    for (int i = 0; i < count; i++) {
        found[i] = (Candidate){logits[i], 0, i};
        wrong |= logits[i] != logits[i];
    }
    for (int i = count / 2 - 1; i >= 0; i--) sink(found, i, count);
    for (int64_t i = count; i < size; i++) {
        wrong |= logits[i] != logits[i];
        if (!(logits[i] > found[0].logit)) continue;  /* of equals the lower id stays */
        found[0] = (Candidate){logits[i], 0, i};
        sink(found, 0, count);
    }
    qsort(found, (size_t)count, sizeof *found, by_likelihood);
    return wrong;
}

/* Which of logits (size,) may be picked: of the `top_k` likeliest (at most 1024), those that top_p and min_p leave (1 and 0
   for none), in the order of their ids, with masses in units of the likeliest. Returns how many, and their mass in all;
   -1 where a logit is no number or the largest is infinite. */
static int left(const float *logits, int64_t size, int64_t top_k, float temperature, double top_p, double min_p,
                Candidate *found, double *mass) {
    int count = (int)(top_k < size ? top_k : size), kept = 0;
    double total = 0;
    *mass = 0;
    if (count < 1 || count > MOST || likeliest(logits, size, found, count) || isinf(found[0].logit)) return -1;
    for (int i = 0; i < count; i++) {
        found[i].mass = expf((found[i].logit - found[0].logit) / temperature);
        total += found[i].mass;
    }
    for (; kept < count && (!kept || (*mass < top_p * total && found[kept].mass >= min_p)); kept++)
        *mass += found[kept].mass;
    qsort(found, (size_t)kept, sizeof *found, by_id);
    return kept;
}

/* The id that the number `draw` (0 to 1) picks. Returns -1 where `left` does. */
PUBLIC int64_t gencli_sample(const float *logits, int64_t size, int64_t top_k, float temperature, double top_p,
                             double min_p, double draw) {
    Candidate found[MOST];
    double mass, sum = 0;
    int kept = left(logits, size, top_k, temperature, top_p, min_p, found, &mass);
    if (kept < 0) return -1;
    double point = draw * mass, largest = nextafter(mass, 0);
    point = point < largest ? point : largest;
    for (int i = 0; i < kept; i++)
        if ((sum += found[i].mass) > point) return found[i].id;
    return found[kept - 1].id;
}

/* The ids that may be picked, in order, and their masses: at most 1024 each. Returns how many, or -1 as `left`. */
PUBLIC int64_t gencli_candidates(const float *logits, int64_t size, int64_t top_k, float temperature, double top_p,
                                 double min_p, int64_t *ids, double *masses) {
    Candidate found[MOST];
    double mass;
    int kept = left(logits, size, top_k, temperature, top_p, min_p, found, &mass);
    for (int i = 0; i < kept; i++) ids[i] = found[i].id, masses[i] = found[i].mass;
    return kept;
}
