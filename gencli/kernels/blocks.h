/* How GGUF files pack weights: blocks of 32 or 256 weights of a row with their scales, little-endian, at any address.

   weight = scale * (code - offset) - min. A row is read in groups of 256 weights, 8 chunks of 32; the last group of
   types with blocks of 32 may be shorter. Every type has two functions, written in the vectors of simd_*.h:
     TYPE_scales(b, chunks, scale, min)   the scales of a group, and its mins if it has them, as floats: one per chunk, or
                                          two, for 16 weights each
     TYPE_codes(b, j)                     the codes of chunk j: unsigned and below 128, or signed
   The layouts are those of llama.cpp (ggml-common.h) and of the package gguf (quants.py). */

enum { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13,
       Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39 };  /* GGUF's own numbers */

static const int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int8_t MXFP4_VALUES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

INLINE uint32_t four(const uint8_t *p) { uint32_t value; memcpy(&value, p, 4); return value; }
INLINE uint64_t eight(const uint8_t *p) { uint64_t value; memcpy(&value, p, 8); return value; }

/* --- blocks of 32 weights: a group is eight of them ---------------------------------------------------------------- */

#define ONES 0x0101010101010101u

/* numbers of 16 bits, `step` bytes apart */
INLINE void f16s(float *to, const uint8_t *p, int step, int count) {
    if (count == 8) store(to, spaced_f16(p, step));
    else for (int i = 0; i < count; i++) to[i] = f16(p + step * i);
}
INLINE void negative_f16s(float *to, const uint8_t *p, int step, int count) {
    f16s(to, p, step, count);
    for (int i = 0; i < count; i++) to[i] = -to[i];
}

INLINE void Q4_0_scales(const uint8_t *b, int n, float *s, float *m) { f16s(s, b, 18, n); (void)m; }
INLINE bytes Q4_0_codes(const uint8_t *b, int j) { return nibbles(b + 18 * j + 2); }

INLINE void Q4_1_scales(const uint8_t *b, int n, float *s, float *m) { f16s(s, b, 20, n); negative_f16s(m, b + 2, 20, n); }
INLINE bytes Q4_1_codes(const uint8_t *b, int j) { return nibbles(b + 20 * j + 4); }

INLINE void Q5_0_scales(const uint8_t *b, int n, float *s, float *m) { f16s(s, b, 22, n); (void)m; }
INLINE bytes Q5_0_codes(const uint8_t *b, int j) {
    return either(nibbles(b + 22 * j + 6), spread_bits(b + 22 * j + 2, 16));
}

INLINE void Q5_1_scales(const uint8_t *b, int n, float *s, float *m) { f16s(s, b, 24, n); negative_f16s(m, b + 2, 24, n); }
INLINE bytes Q5_1_codes(const uint8_t *b, int j) {
    return either(nibbles(b + 24 * j + 8), spread_bits(b + 24 * j + 4, 16));
}

INLINE void Q8_0_scales(const uint8_t *b, int n, float *s, float *m) { f16s(s, b, 34, n); (void)m; }
INLINE bytes Q8_0_codes(const uint8_t *b, int j) { return load(b + 34 * j + 2); }

INLINE void IQ4_NL_scales(const uint8_t *b, int n, float *s, float *m) { f16s(s, b, 18, n); (void)m; }
INLINE bytes IQ4_NL_codes(const uint8_t *b, int j) { return lookup(IQ4_VALUES, nibbles(b + 18 * j + 2)); }

INLINE void MXFP4_scales(const uint8_t *b, int n, float *s, float *m) {
    (void)m;
    for (int i = 0; i < n; i++) {  /* a power of two, halved since the values are doubled */
        uint32_t e = b[17 * i], number = e < 2 ? 0x00200000u << e : (e - 1) << 23;
        memcpy(s + i, &number, 4);
    }
}
INLINE bytes MXFP4_codes(const uint8_t *b, int j) { return lookup(MXFP4_VALUES, nibbles(b + 17 * j + 1)); }

/* --- blocks of 256 weights ("K-quants"): scales are unpacked as eight bytes in a number ----------------------------- */

/* bytes less 32, times d */
INLINE floats less_32(uint64_t codes, float d) { return times(same(d), plus(widen(codes), same(-32))); }

/* 16 scales and mins of 4 bits | 64 bytes of 2 bits | scale of the scales, of the mins */
INLINE void Q2_K_scales(const uint8_t *b, int n, float *s, float *m) {
    floats d = same(f16(b + 80)), dmin = same(f16(b + 82));
    (void)n;
    for (int i = 0; i < 16; i += 8) {
        store(s + i, times(d, widen(eight(b + i) & 15 * ONES)));
        store(m + i, times(dmin, widen(eight(b + i) >> 4 & 15 * ONES)));
    }
}
INLINE bytes Q2_K_codes(const uint8_t *b, int j) { return field(load(b + 16 + j / 4 * 32), j % 4 * 2, 3); }

/* 32 bytes of the third bit | 64 bytes of 2 bits | 16 scales: 8 bytes of 4 bits, 4 of the upper 2 | their scale */
INLINE void Q3_K_scales(const uint8_t *b, int n, float *s, float *m) {
    uint64_t low = eight(b + 96), high = four(b + 104);
    float d = f16(b + 108);
    (void)n, (void)m;
    high |= high << 30;  /* the next two bits of the four bytes become four bytes more */
    store(s, less_32((low & 15 * ONES) | (high & 3 * ONES) << 4, d));
    store(s + 8, less_32((low >> 4 & 15 * ONES) | (high >> 4 & 3 * ONES) << 4, d));
}
INLINE bytes Q3_K_codes(const uint8_t *b, int j) {
    return either(field(load(b + 32 + j / 4 * 32), j % 4 * 2, 3), shift_up(field(load(b), j, 1), 2));
}

/* scale of the scales, of the mins | 8 scales and 8 mins of 6 bits: the first four whole, of the others the lower four
   bits lie in the last four bytes, and the upper two in the first | 128 bytes of 4 bits */
INLINE void Q4_K_scales(const uint8_t *b, int n, float *s, float *m) {
    uint64_t first = four(b + 4), mins = four(b + 8), last = four(b + 12);
    const uint64_t low = 0x0f0f0f0f, six = 0x3f3f3f3f, two = 0x03030303;
    (void)n;
    store(s, times(same(f16(b)), widen((first & six) | ((last & low) | (first >> 6 & two) << 4) << 32)));
    store(m, times(same(f16(b + 2)), widen((mins & six) | ((last >> 4 & low) | (mins >> 6 & two) << 4) << 32)));
}
INLINE bytes Q4_K_codes(const uint8_t *b, int j) { return field(load(b + 16 + j / 2 * 32), j % 2 * 4, 15); }

/* as Q4_K, with 32 bytes of the fifth bit before the others */
INLINE void Q5_K_scales(const uint8_t *b, int n, float *s, float *m) { Q4_K_scales(b, n, s, m); }
INLINE bytes Q5_K_codes(const uint8_t *b, int j) {
    return either(field(load(b + 48 + j / 2 * 32), j % 2 * 4, 15), shift_up(field(load(b + 16), j, 1), 4));
}

/* 128 bytes of 4 bits | 64 bytes of the upper 2 | 16 scales of 8 bits | their scale */
INLINE void Q6_K_scales(const uint8_t *b, int n, float *s, float *m) {
    floats d = same(f16(b + 208));
    (void)n, (void)m;
    store(s, times(d, widen_signed(eight(b + 192))));
    store(s + 8, times(d, widen_signed(eight(b + 200))));
}
INLINE bytes Q6_K_codes(const uint8_t *b, int j) {
    bytes low = field(load(b + j / 4 * 64 + j % 2 * 32), j / 2 % 2 * 4, 15);
    return either(low, shift_up(field(load(b + 128 + j / 4 * 32), j % 4 * 2, 3), 4));
}

/* scale of the scales | upper 2 bits of 8 scales | lower 4 bits | 128 bytes of 4 bits, numbers of IQ4_VALUES */
INLINE void IQ4_XS_scales(const uint8_t *b, int n, float *s, float *m) {
    uint64_t high = b[2] | (uint64_t)b[3] << 8, low = four(b + 4);
    (void)n, (void)m;
    low = (low | low << 16) & 0x0000ffff0000ffff;  /* every four bits become a byte */
    low = (low | low << 8) & 0x00ff00ff00ff00ff;
    low = (low | low << 4) & 15 * ONES;
    high = (high | high << 24) & 0x000000ff000000ff;  /* and every two */
    high = (high | high << 12) & 0x000f000f000f000f;
    high = (high | high << 6) & 3 * ONES;
    store(s, less_32(low | high << 4, f16(b)));
}
INLINE bytes IQ4_XS_codes(const uint8_t *b, int j) { return lookup(IQ4_VALUES, nibbles(b + 8 + 16 * j)); }

/* name, weights in a block, its bytes, scales per chunk, offset of the codes, whether they have a sign, whether mins,
   how many pairs of products of codes and activations are surely within 16 bits, and whether activations have 16 bits */
#define PACKED_TYPES(row) \
    row(Q4_0, 32, 18, 1, 8, 0, 0, 8, 0) row(Q4_1, 32, 20, 1, 0, 0, 1, 8, 0) row(Q5_0, 32, 22, 1, 16, 0, 0, 4, 0) \
    row(Q5_1, 32, 24, 1, 0, 0, 1, 4, 0) row(Q8_0, 32, 34, 1, 0, 1, 0, 1, 1) row(IQ4_NL, 32, 18, 1, 0, 1, 0, 1, 0) \
    row(MXFP4, 32, 17, 1, 0, 1, 0, 8, 0) row(Q2_K, 256, 84, 2, 0, 0, 1, 8, 0) row(Q3_K, 256, 110, 2, 4, 0, 0, 8, 0) \
    row(Q4_K, 256, 144, 1, 0, 0, 1, 8, 0) row(Q5_K, 256, 176, 1, 0, 0, 1, 4, 0) row(Q6_K, 256, 210, 2, 32, 0, 0, 2, 0) \
    row(IQ4_XS, 256, 136, 1, 0, 1, 0, 1, 0)
