/* All work on numbers, compiled once for each variant: VARIANT is its name, SIMD the header with its vectors. */
#include "kernels.h"

#include <math.h>

#if defined(_MSC_VER) && !defined(__clang__)
#define INLINE static __forceinline
#else
#define INLINE static inline __attribute__((always_inline))
#endif

#define TEXT(name) #name
#define QUOTED(name) TEXT(name)

#ifdef __F16C__
#include <immintrin.h>
INLINE float f16(const uint8_t *p) { uint16_t bits; memcpy(&bits, p, 2); return _cvtsh_ss(bits); }
#else
INLINE float f16(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff, number;
    if (rest >= 0x7c00) number = rest << 13 | 0x7f800000;  /* infinite, or no number */
    else if (rest >= 0x0400) number = (rest << 13) + 0x38000000;
    else {
        float small = (float)rest * 5.9604644775390625e-8f;  /* 2^-24 */
        memcpy(&number, &small, 4);
    }
    number |= sign;
    float value;
    memcpy(&value, &number, 4);
    return value;
}
#endif
INLINE float bf16(const uint8_t *p) {
    uint32_t number = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
    float value;
    memcpy(&value, &number, 4);
    return value;
}
INLINE float f32(const uint8_t *p) { float value; memcpy(&value, p, 4); return value; }

#ifndef PLAIN  /* plain arrays are left to the compiler, one position at a time */
#define UNROLL(n) _Pragma(QUOTED(GCC unroll n))
#define AT_ONCE 4
#else
#define UNROLL(n)
#define AT_ONCE 1
#endif
#define FROM 16  /* positions from which on weights are unpacked once for all of them; twice as many if they have a sign */
/* Bytes: how far ahead weights are asked for. What the CPU foresees by itself ends with each page of a mapped file. Float32
   is read at the memory's speed without it, and slower with it. */
#define AHEAD_PACKED 3072
#define AHEAD_HALVES 4096
#define ROWS_AT_ONCE 8
#define ROWS_AHEAD 8

#include SIMD
#include "blocks.h"

/* Asks for the lines of memory from p on, which need not be there. */
INLINE void fetch(const uint8_t *p, int count) {
    for (int i = 0; i < count; i += 64) __builtin_prefetch(p + i);
}

#if FINE
/* The power of two of which 2^14 to 2^15 are this number. */
INLINE float fine_step(float top) {
    uint32_t number;
    memcpy(&number, &top, 4);
    number = (number & 0x7f800000) - (14 << 23);
    memcpy(&top, &number, 4);
    return top;
}
#endif

static void prepare(Activations *to, int64_t columns) {
    for (int64_t i = 0; i < columns / 32; i++) {
        const float *x = to->x + 32 * i;
        int sums[2];
        float top = largest(x);
        float all = total(plus(plus(load_f32(x), load_f32(x + 8)), plus(load_f32(x + 16), load_f32(x + 24))));
        float scale = (top < 1e-30f ? 0 : top / 127) + 0 * all;  /* what is no number stays none */
        round_bytes(to->codes + 32 * i, x, top < 1e-30f ? 0 : 127 / top, sums);
        to->scales[i] = scale;
        to->scales16[2 * i] = to->scales16[2 * i + 1] = scale;
        to->sums16[2 * i] = scale * (float)sums[0];
        to->sums16[2 * i + 1] = scale * (float)sums[1];
        to->sums32[i] = scale * (float)(sums[0] + sums[1]);
#if FINE
        float step = top < 1e-30f ? 0 : fine_step(top);
        round_shorts(to->fine + 32 * i, x, top < 1e-30f ? 0 : 1 / step);
        to->fine_scales[i] = step + 0 * all;
#endif
    }
}

/* --- packed types -------------------------------------------------------------------------------------------------- */

typedef void Scales(const uint8_t *b, int chunks, float *s, float *m);
typedef bytes Codes(const uint8_t *b, int j);
typedef struct { int block, size, per_chunk, offset, sign, mins, fit, fine; Scales *scales; Codes *codes; } Type;

/* Sums of products of 32 codes with the activations from number `at` on. */
INLINE floats products_of(Type t, bytes codes, const Activations *x, int64_t at) {
#if FINE
    if (t.fine) return dot_fine(codes, x->fine + at);
#endif
    return t.sign ? dot_signed(codes, x->codes + at) : dot_unsigned(codes, x->codes + at);
}
INLINE const float *scales_of(Type t, const Activations *x) { return t.fine ? x->fine_scales : x->scales; }

/* Adds the products of a group of 256 weights at b with the activations from number `at` on. */
INLINE void add_group(Type t, const uint8_t *b, const Activations *x, int64_t at, int positions, floats sums[][2]) {
    float s[16], m[16], scaled[AT_ONCE][16];
    const int each = t.per_chunk;
    fetch(b + AHEAD_PACKED, 256 / t.block * t.size);
    t.scales(b, 8, s, m);
    UNROLL(8)
    for (int p = 0; p < positions; p++)
        for (int i = 0; i < 8 * each; i += 8) {
            floats scale = load_f32(s + i);
            const float *sum = each == 2 ? x[p].sums16 + at / 16 + i : x[p].sums32 + at / 32;
            if (t.offset) sums[p][1] = plus_times(sums[p][1], times(scale, same((float)-t.offset)), load_f32(sum));
            if (t.mins) sums[p][1] = plus_times(sums[p][1], times(load_f32(m + i), same(-1)), load_f32(sum));
            const float *steps = each == 2 ? x[p].scales16 + at / 16 + i : scales_of(t, x + p) + at / 32;
            store(scaled[p] + i, times(scale, load_f32(steps)));
        }
    UNROLL(8)
    for (int j = 0; j < 8; j++) {
        bytes codes = t.codes(b, j);
        UNROLL(8)
        for (int p = 0; p < positions; p++) {
            floats product = products_of(t, codes, x + p, at + 32 * j);
            floats scale = each == 2 ? halves(scaled[p] + 2 * j) : same(scaled[p][j]);
            sums[p][j % 2] = plus_times(sums[p][j % 2], product, scale);
        }
    }
}

/* The same of a block of 32 weights, at the end of a row that is no multiple of 256. */
INLINE void add_block(Type t, const uint8_t *b, const Activations *x, int64_t at, int positions, floats sums[][2],
                      float *y) {
    float s[8], m[8] = {0};
    t.scales(b, 1, s, m);
    bytes codes = t.codes(b, 0);
    UNROLL(8)
    for (int p = 0; p < positions; p++) {
        floats product = products_of(t, codes, x + p, at);
        sums[p][0] = plus_times(sums[p][0], product, same(s[0] * scales_of(t, x + p)[at / 32]));
        y[p] -= ((float)t.offset * s[0] + m[0]) * x[p].sums32[at / 32];
    }
}

/* y[p] of a row for each position p */
INLINE void packed_row(Type t, const uint8_t *row, int64_t columns, const Activations *x, int positions, float *y) {
    floats sums[AT_ONCE][2];
    UNROLL(8)
    for (int p = 0; p < positions; p++) sums[p][0] = sums[p][1] = zero(), y[p] = 0;
    int64_t at = 0, bytes_per_group = 256 / t.block * t.size;
    for (; at + 256 <= columns; at += 256, row += bytes_per_group) add_group(t, row, x, at, positions, sums);
    for (; t.block == 32 && at < columns; at += 32, row += t.size) add_block(t, row, x, at, positions, sums, y);
    UNROLL(8)
    for (int p = 0; p < positions; p++) y[p] += total(plus(sums[p][0], sums[p][1]));
}

INLINE void dequantise_row(Type t, const uint8_t *row, int64_t columns, float *to) {
    for (int64_t at = 0; at < columns; at += 256, row += 256 / t.block * t.size) {
        int chunks = (int)(columns - at < 256 ? columns - at : 256) / 32;
        float s[16], m[16] = {0};
        t.scales(row, chunks, s, m);
        for (int j = 0; j < chunks; j++) {
            int i = t.per_chunk * j, second = i + t.per_chunk - 1;
            const float scale[2] = {s[i], s[second]}, min[2] = {m[i], m[second]};
            store_scaled(to + at + 32 * j, minus(t.codes(row, j), t.offset), scale, min);
        }
    }
}

#include "tiles.h"

/* --- F32, F16, BF16 ------------------------------------------------------------------------------------------------ */

typedef floats Load(const void *p);
typedef float One(const uint8_t *p);

/* y of one or two rows from row i on, for some positions: eight sums at a time, which hide how long an addition takes */
INLINE void float_rows(Load *load8, One *one, int size, const Weights *w, int64_t i, int rows, const Activations *x,
                       int positions, float *y, int64_t y_stride) {
    const int parts = rows * positions < 4 ? 4 : rows * positions == 4 ? 2 : 1;
    const uint8_t *row = w->data + i * w->stride;
    floats sums[2][AT_ONCE][4];
    int64_t at = 0;
    UNROLL(2)
    for (int r = 0; r < rows; r++) {
        UNROLL(8)
        for (int p = 0; p < positions; p++) sums[r][p][0] = sums[r][p][1] = sums[r][p][2] = sums[r][p][3] = zero();
    }
    for (; at + 32 <= w->columns; at += 32) {
        UNROLL(2)
        for (int r = 0; size == 2 && r < rows; r++) fetch(row + r * w->stride + at * size + AHEAD_HALVES, 32 * size);
        UNROLL(4)
        for (int part = 0; part < 4; part++) {
            floats weights[2];
            UNROLL(2)
            for (int r = 0; r < rows; r++) weights[r] = load8(row + r * w->stride + (at + 8 * part) * size);
            UNROLL(8)
            for (int p = 0; p < positions; p++) {
                floats with = load_f32(x[p].x + at + 8 * part);
                UNROLL(2)
                for (int r = 0; r < rows; r++)
                    sums[r][p][part % parts] = plus_times(sums[r][p][part % parts], weights[r], with);
            }
        }
    }
    UNROLL(2)
    for (int r = 0; r < rows; r++) {
        int64_t output = w->order ? w->order[i + r] : i + r;
        UNROLL(8)
        for (int p = 0; p < positions; p++) {
            floats sum = sums[r][p][0];
            if (parts > 1) sum = plus(sum, sums[r][p][1]);
            if (parts > 2) sum = plus(sum, plus(sums[r][p][2], sums[r][p][3]));
            float all = total(sum);
            for (int64_t j = at; j < w->columns; j++) all += one(row + r * w->stride + j * size) * x[p].x[j];
            y[p * y_stride + output] = all + (w->bias ? w->bias[output] : 0);
        }
    }
}

/* y of 8 * vectors columns from j on += x[i] * row i of a few rows, for some positions at once */
INLINE void strip(Load *load8, int size, const Weights *w, const Activations *x, int positions, int vectors, float *y,
                  int64_t y_stride, int64_t j, int64_t i, int64_t end) {
    floats sums[AT_ONCE][8];
    const float *by[AT_ONCE];
    UNROLL(8)
    for (int p = 0; p < positions; p++) {
        by[p] = x[p].x;
        UNROLL(8)
        for (int v = 0; v < vectors; v++) sums[p][v] = load_f32(y + p * y_stride + j + 8 * v);
    }
    for (; i < end; i++) {
        const uint8_t *row = w->data + i * w->stride + j * size;
        UNROLL(8)
        for (int v = 0; v < vectors; v++) {
            floats weights = load8(row + 8 * v * size);
            UNROLL(8)
            for (int p = 0; p < positions; p++) sums[p][v] = plus_times(sums[p][v], weights, same(by[p][i]));
        }
    }
    UNROLL(8)
    for (int p = 0; p < positions; p++) {
        UNROLL(8)
        for (int v = 0; v < vectors; v++) store(y + p * y_stride + j + 8 * v, sums[p][v]);
    }
}

/* The columns first to last - 1 of rows that are inputs, some rows at a time. */
INLINE void sideways(Load *load8, One *one, int size, const Weights *w, const Activations *x, int positions, float *y,
                     int64_t y_stride, int64_t first, int64_t last) {
    const int wide = 8 / positions;
    for (int p = 0; p < positions; p++)
        for (int64_t j = first; j < last; j++) y[p * y_stride + j] = w->bias ? w->bias[j] : 0;
    for (int64_t i = 0, end; i < w->rows; i = end) {
        int64_t j = first;
        end = i + ROWS_AT_ONCE < w->rows ? i + ROWS_AT_ONCE : w->rows;
        for (int64_t k = i; k < end; k++)
            fetch(w->data + (k + ROWS_AHEAD) * w->stride + first * size, (int)(last - first) * size + 63);
        for (; j + 8 * wide <= last; j += 8 * wide) strip(load8, size, w, x, positions, wide, y, y_stride, j, i, end);
        for (; j + 8 <= last; j += 8) strip(load8, size, w, x, positions, 1, y, y_stride, j, i, end);
        for (; j < last; j++)
            for (int p = 0; p < positions; p++)
                for (int64_t k = i; k < end; k++)
                    y[p * y_stride + j] += one(w->data + k * w->stride + j * size) * x[p].x[k];
    }
}

INLINE void copy_floats(Load *load8, One *one, int size, const uint8_t *row, int64_t columns, float *to) {
    int64_t at = 0;
    for (; at + 8 <= columns; at += 8) store(to + at, load8(row + at * size));
    for (; at < columns; at++) to[at] = one(row + at * size);
}

/* --- the table ----------------------------------------------------------------------------------------------------- */

#define ROW(NAME, block, size, per_chunk, offset, sign, mins, fit, fine) \
    static const Type NAME##_type = {block, size, per_chunk, offset, sign, mins, fit, FINE && fine, NAME##_scales, NAME##_codes};
PACKED_TYPES(ROW)
#undef ROW

/* The rows first to last - 1 for some positions at once. */
typedef void Rows(const Weights *w, const Activations *x, float *y, int64_t y_stride, int64_t first, int64_t last);

#define PACKED(NAME, positions) \
    static void NAME##_##positions(const Weights *w, const Activations *x, float *y, int64_t y_stride, int64_t first, \
                                   int64_t last) { \
        for (int64_t i = first; i < last; i++) { \
            const uint8_t *row = w->data + i * w->stride; \
            int64_t output = w->order ? w->order[i] : i; \
            float bias = w->bias ? w->bias[output] : 0, sums[positions]; \
            packed_row(NAME##_type, row, w->columns, x, positions, sums); \
            for (int p = 0; p < positions; p++) y[p * y_stride + output] = sums[p] + bias; \
        } \
    }
#define FLOATS(NAME, l, o, s, positions) \
    static void NAME##_##positions(const Weights *w, const Activations *x, float *y, int64_t y_stride, int64_t first, \
                                   int64_t last) { \
        for (; positions > 1 && first + 2 <= last; first += 2) \
            float_rows(l, o, s, w, first, 2, x, positions, y, y_stride); \
        for (; first < last; first++) float_rows(l, o, s, w, first, 1, x, positions, y, y_stride); \
    }
#define FLOAT_TYPES(row) row(F32, load_f32, f32, 4) row(F16, load_f16, f16, 2) row(BF16, load_bf16, bf16, 2)
#if AT_ONCE == 4
#define PACKED_ROW(NAME, ...) PACKED(NAME, 1) PACKED(NAME, 2) PACKED(NAME, 4)
#define FLOAT_ROW(NAME, l, o, s) FLOATS(NAME, l, o, s, 1) FLOATS(NAME, l, o, s, 2) FLOATS(NAME, l, o, s, 4)
#define CHOSEN(NAME) positions == 4 ? NAME##_4 : positions == 2 ? NAME##_2 : NAME##_1
#else
#define PACKED_ROW(NAME, ...) PACKED(NAME, 1)
#define FLOAT_ROW(NAME, l, o, s) FLOATS(NAME, l, o, s, 1)
#define CHOSEN(NAME) NAME##_1
#endif
PACKED_TYPES(PACKED_ROW)
FLOAT_TYPES(FLOAT_ROW)

static Rows *rows_product(int type, int positions) {
    (void)positions;
    switch (type) {
#define ROW(NAME, ...) case NAME: return CHOSEN(NAME);
        PACKED_TYPES(ROW)
        FLOAT_TYPES(ROW)
#undef ROW
    }
    return NULL;
}

/* The columns first to last - 1 of rows that are inputs. */
#define SIDEWAYS(NAME, l, o, s, positions) \
    static void NAME##_sideways_##positions(const Weights *w, const Activations *x, float *y, int64_t y_stride, \
                                            int64_t first, int64_t last) { \
        sideways(l, o, s, w, x, positions, y, y_stride, first, last); \
    }
#if AT_ONCE == 4
#define SIDEWAYS_ROW(NAME, l, o, s) SIDEWAYS(NAME, l, o, s, 1) SIDEWAYS(NAME, l, o, s, 2) SIDEWAYS(NAME, l, o, s, 4)
#else
#define SIDEWAYS_ROW(NAME, l, o, s) SIDEWAYS(NAME, l, o, s, 1)
#endif
FLOAT_TYPES(SIDEWAYS_ROW)

static Rows *sideways_product(int type, int positions) {
    (void)positions;
    switch (type) {
#define ROW(NAME, ...) case NAME: return CHOSEN(NAME##_sideways);
        FLOAT_TYPES(ROW)
#undef ROW
    }
    return NULL;
}

static int64_t product_tiles(const Weights *w, const Activations *x, int positions, float *y, int64_t y_stride,
                             int64_t first, int64_t last) {
    switch (w->type) {
#define ROW(NAME, ...) case NAME: return tiles(NAME##_type, w, x, positions, y, y_stride, first, last);
        PACKED_TYPES(ROW)
#undef ROW
    }
    return first;
}

static int at_once(int positions) { return positions < AT_ONCE ? positions < 2 ? 1 : 2 : AT_ONCE; }

static void product(const Weights *w, const Activations *x, int positions, float *y, int64_t y_stride, int64_t first,
                    int64_t last) {
    if (w->sideways) {
        for (int done = 0, now; done < positions; done += now) {
            now = at_once(positions - done);
            sideways_product(w->type, now)(w, x + done, y + done * y_stride, y_stride, first, last);
        }
        return;
    }
    first = product_tiles(w, x, positions, y, y_stride, first, last);
    for (int done = 0, now; first < last && done < positions; done += now) {
        now = at_once(positions - done);
        rows_product(w->type, now)(w, x + done, y + done * y_stride, y_stride, first, last);
    }
}

static void dequantise(int type, const uint8_t *row, int64_t columns, float *to) {
    switch (type) {
#define ROW(NAME, ...) case NAME: dequantise_row(NAME##_type, row, columns, to); return;
        PACKED_TYPES(ROW)
#undef ROW
#define ROW(NAME, load8, one, size) case NAME: copy_floats(load8, one, size, row, columns, to); return;
        FLOAT_TYPES(ROW)
#undef ROW
    }
}

#include "layer.h"
#include "delta.h"
#include "pack.h"

#if defined(__ARM_FEATURE_DOTPROD) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__ARM_FEATURE_DOTPROD) && defined(_WIN32)
#include <windows.h>
#endif

static int runs_here(void) {
#if defined(__AVX512VNNI__)
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__ARM_FEATURE_DOTPROD) && defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  /* HWCAP_ASIMDDP */
#elif defined(__ARM_FEATURE_DOTPROD) && defined(_WIN32)
    return IsProcessorFeaturePresent(43);  /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
#elif defined(__ARM_FEATURE_DOTPROD) && !defined(__APPLE__)  /* every Mac has them */
    return 0;
#else
    return 1;
#endif
}

#define JOIN(a, b) a##b
#define SYMBOL(name) JOIN(gencli_, name)
const Variant SYMBOL(VARIANT) = {QUOTED(VARIANT), runs_here, prepare, product, dequantise,
                                 pack, norm, attend, activate, convolve, learn, open_gate};
