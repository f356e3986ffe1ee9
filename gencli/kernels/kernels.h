/* Products of a few positions with packed weights, and their dequantisation. What a variant offers, and what all share.

   Weights lie in rows, packed as in a GGUF file; x and y are float32. Activations are rounded to 8 bits in blocks of 32
   for packed types (as llama.cpp does), and stay float32 for F32, F16 and BF16. */
#ifndef GENCLI_KERNELS_H
#define GENCLI_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INTERFACE 1  /* what the Python side asks for: changes with the functions and structures below */
#define MOST 8       /* positions of one product */

typedef struct {
    const uint8_t *data;   /* the first row */
    int64_t rows, columns;
    int64_t stride;        /* bytes from a row to the next */
    const int32_t *order;  /* row i is output order[i]; NULL: i */
    const float *bias;     /* of the outputs; NULL: none */
    int32_t type;          /* a number of GGUF */
    int32_t sideways;      /* rows are inputs and columns outputs (F32, F16, BF16 alone; without order) */
} Weights;

/* One position's activations: codes of 8 bits, a scale for each 32, the same twice for each 16, and sums of codes *
   scale of each 16 and of each 32. */
typedef struct {
    const float *x;
    int8_t *codes;
    float *scales, *scales16, *sums16, *sums32;
} Activations;

typedef struct {
    const char *name;
    int (*runs_here)(void);
    void (*prepare)(Activations *to, int64_t columns);
    /* y[position * y_stride + output] of rows first to last - 1; sideways, of columns first to last - 1 */
    void (*product)(const Weights *w, const Activations *x, int positions, float *y, int64_t y_stride,
                    int64_t first, int64_t last);
    void (*dequantise)(int type, const uint8_t *row, int64_t columns, float *to);
} Variant;

extern const Variant gencli_plain, gencli_avx2, gencli_avx512, gencli_neon;

#endif
