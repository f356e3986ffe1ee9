/* Packed types and many positions: the products of `packed_row`, eight rows at a time, whose weights are unpacked once
   for all positions. Part of variant.c. */

/* 256 weights of eight rows. codes: of each chunk, four of every row, then the next four; mins: what every sum of
   activations is multiplied by. */
typedef struct {
    union { uint8_t codes[8][8][32]; int16_t fine[8][256]; };
    float scales[16][8], mins[16][8];
} Tile;

INLINE void fill(Type t, Tile *tile, const uint8_t *row, int64_t stride, int chunks) {
    uint8_t codes[32];
    for (int r = 0; r < 8; r++, row += stride) {
        float s[16], m[16] = {0};
        t.scales(row, chunks, s, m);
        for (int i = 0; i < t.per_chunk * chunks; i++) {
            tile->scales[i][r] = s[i];
            tile->mins[i][r] = -(float)t.offset * s[i] - m[i];
        }
        for (int j = 0; j < chunks; j++) {
            bytes all = t.codes(row, j);
#if FINE
            if (t.fine) {
                lay_fine(tile->fine[j], r, all);
                continue;
            }
#endif
            memcpy(codes, &all, 32);
            for (int k = 0; k < 8; k++) memcpy(tile->codes[j][k] + 4 * r, codes + 4 * k, 4);
        }
    }
}

INLINE void add_tile(Type t, const Tile *tile, int chunks, const Activations *x, int64_t at, int positions, floats *to) {
    const int each = t.per_chunk, steps = 8 / each;
    const int8_t *codes[AT_ONCE];
    floats sums[AT_ONCE], products[AT_ONCE];
    UNROLL(8)
    for (int p = 0; p < positions; p++) sums[p] = to[p];
    for (int i = 0; i < each * chunks; i++) {
        floats scale = load_f32(tile->scales[i]), min = load_f32(tile->mins[i]);
        UNROLL(8)
        for (int p = 0; p < positions; p++) codes[p] = x[p].codes + at + 4 * steps * i;
        if (!t.fine)
            dots((const uint8_t *)tile->codes + 32 * steps * i, steps, codes, positions, t.sign, t.fit, products);
#if FINE
        else {
            const int16_t *fine[AT_ONCE];
            UNROLL(8)
            for (int p = 0; p < positions; p++) fine[p] = x[p].fine + at + 32 * i;
            dots_fine(tile->fine[i], fine, positions, products);
        }
#endif
        UNROLL(8)
        for (int p = 0; p < positions; p++) {
            const float *sum = each == 2 ? x[p].sums16 + at / 16 : x[p].sums32 + at / 32;
            const float *by = each == 2 ? x[p].scales16 + at / 16 : scales_of(t, x + p) + at / 32;
            sums[p] = plus_times(sums[p], products[p], times(scale, same(by[i])));
            if (t.offset || t.mins) sums[p] = plus_times(sums[p], min, same(sum[i]));
        }
    }
    UNROLL(8)
    for (int p = 0; p < positions; p++) to[p] = sums[p];
}

/* The rows from `first` on, as many eights as there are before `last`; none for few positions, of which unpacking is not
   worth it. Returns the row after them. */
INLINE int64_t tiles(Type t, const Weights *w, const Activations *x, int positions, float *y, int64_t y_stride,
                     int64_t first, int64_t last) {
    Tile tile;
    floats sums[CHUNK];
    if (positions < (t.sign ? 2 * FROM : FROM)) return first;
    for (; first + 8 <= last; first += 8) {
        const uint8_t *row = w->data + first * w->stride;
        for (int p = 0; p < positions; p++) sums[p] = zero();
        for (int64_t at = 0; at < w->columns; at += 256, row += 256 / t.block * t.size) {
            int chunks = (int)(w->columns - at < 256 ? w->columns - at : 256) / 32, p = 0;
            fill(t, &tile, row, w->stride, chunks);
            for (; p + AT_ONCE <= positions; p += AT_ONCE) add_tile(t, &tile, chunks, x + p, at, AT_ONCE, sums + p);
            for (; p < positions; p++) add_tile(t, &tile, chunks, x + p, at, 1, sums + p);
        }
        for (int p = 0; p < positions; p++) {
            float all[8];
            store(all, sums[p]);
            for (int r = 0; r < 8; r++) {
                int64_t output = w->order ? w->order[first + r] : first + r;
                y[p * y_stride + output] = all[r] + (w->bias ? w->bias[output] : 0);
            }
        }
    }
    return first;
}
