/* float32 → packed blocks, the inverse of blocks.h. Part of variant.c. pack.py does the same by torch operations, and says
   how scales are searched for. Each function packs a block, and returns 1 for numbers that its type cannot hold. */

/* --- numbers ------------------------------------------------------------------------------------------------------- */

INLINE float inverse(float a) { return a == 0 ? 0 : 1 / a; }
INLINE floats inverses(floats a) {
    floats found = over(same(1), a);
    return if_less(zero(), a, found, if_less(a, zero(), found, zero()));
}
INLINE floats difference(floats a, floats b) { return plus(a, times(b, same(-1))); }
INLINE floats magnitude(floats a) { return greater(a, times(a, same(-1))); }

/* the nearest whole number (of two the even one) from `low` on to `top`, both of which are small; NaN is `low` */
INLINE float nearest(float a, float low, float top) {
    const float round = 12582912;  /* 1.5 * 2^23: what is added to it is rounded */
    a = a > low ? a < top ? a : top : low;
    return (a + round) - round;
}

/* the nearest number of 16 bits, of two the even one; returns whether it is too large for them */
INLINE int put_f16(uint8_t *to, float value) {
    uint32_t bits, sign;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits < 0x38800000) {  /* below 2^-14 its steps are 2^-24, as those of float32 are from 0.5 on */
        float small;
        memcpy(&small, &bits, 4);
        small += 0.5f;
        memcpy(&bits, &small, 4);
        bits -= 0x3f000000;
    } else bits = ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - 0x1c000;
    int large = bits >= 0x7c00;
    uint16_t number = (uint16_t)(sign | (large ? 0x7c00 : bits));
    memcpy(to, &number, 2);
    return large;
}

/* Puts fields of bytes (from bit `shift` on) into bytes: those of `width` codes into the lowest bits, of the next `width`
   above them, … */
INLINE void join(uint8_t *to, const uint8_t *codes, int count, int shift, int bits, int width) {
    const int each = 8 / bits, mask = (1 << bits) - 1;
    for (int first = 0; first < count; first += each * width, to += width)
        for (int i = 0; i < width; i++) {
            unsigned all = 0;
            for (int k = 0; k < each; k++) all |= (unsigned)(codes[first + k * width + i] >> shift & mask) << bits * k;
            to[i] = (uint8_t)all;
        }
}

/* numbers from -128 to 255 without what is behind the point */
INLINE void store_bytes(uint8_t *to, floats a) {
    float all[8];
    store(all, a);
    for (int i = 0; i < 8; i++) to[i] = (uint8_t)(int)all[i];
}

/* --- blocks of 32 weights, as the package gguf rounds them --------------------------------------------------------- */

INLINE int pack_simple(int bits, int minimum, const float *x, uint8_t *to) {
    const float top = (float)((1 << bits) - 1), middle = minimum ? 0.5f : (float)(1 << (bits - 1)) + 0.5f;
    float low = 0, d;
    uint8_t codes[32];
    if (minimum) {
        floats least = load_f32(x), most = least;
        for (int i = 8; i < 32; i += 8) least = lesser(load_f32(x + i), least), most = greater(load_f32(x + i), most);
        float all[2][8];
        store(all[0], least), store(all[1], most);
        low = all[0][0], d = all[1][0];
        for (int i = 1; i < 8; i++) {
            low = all[0][i] < low ? all[0][i] : low;
            d = all[1][i] > d ? all[1][i] : d;
        }
        d = (d - low) / top;
    } else {
        float size = largest(x);
        int i = 0;
        while (fabsf(x[i]) != size) i++;
        d = x[i] / -(float)(1 << (bits - 1));
    }
    floats by = same(inverse(d));
    for (int i = 0; i < 32; i += 8) {
        floats code = plus(times(difference(load_f32(x + i), same(low)), by), same(middle));
        store_bytes(codes + i, lesser(greater(code, zero()), same(top)));
    }
    int failed = put_f16(to, d) | (minimum ? put_f16(to + 2, low) : 0);
    to += minimum ? 4 : 2;
    if (bits == 5) join(to, codes, 32, 4, 1, 1), to += 4;
    join(to, codes, 32, 0, 4, 16);
    return failed;
}

static int Q4_0_pack(const float *x, uint8_t *to) { return pack_simple(4, 0, x, to); }
static int Q4_1_pack(const float *x, uint8_t *to) { return pack_simple(4, 1, x, to); }
static int Q5_0_pack(const float *x, uint8_t *to) { return pack_simple(5, 0, x, to); }
static int Q5_1_pack(const float *x, uint8_t *to) { return pack_simple(5, 1, x, to); }

static int Q8_0_pack(const float *x, uint8_t *to) {
    const float d = largest(x) / 127;
    floats by = same(inverse(d));
    for (int i = 0; i < 32; i += 8) {
        floats one = load_f32(x + i), size = lesser(magnitude(times(one, by)), same(127)), whole = rounded(size);
        whole = if_less(difference(size, whole), same(0.5f), whole, plus(whole, same(1)));  /* halves away from zero */
        store_bytes(to + 2 + i, if_less(one, zero(), times(whole, same(-1)), whole));
    }
    return put_f16(to, d);
}

/* --- blocks of 256 weights: eight sub-blocks at a time, one in each lane ------------------------------------------- */

/* Number i of eight sub-blocks of `size` numbers. */
INLINE void turn(floats *to, const float *x, int size) {
    for (int i = 0; i < size; i++) {
        float lanes[8];
        for (int block = 0; block < 8; block++) lanes[block] = x[block * size + i];
        to[i] = load_f32(lanes);
    }
}

/* Sub-blocks (x of them, above their least number) and what an error of each number weighs. */
typedef struct { floats x[32], above[32], w[32]; int size; float top; int absolute; } Spans;

/* What codes of above * by leave as weighted errors of scale * code + base. */
INLINE floats misfit(const Spans *s, floats by, floats scale, floats base) {
    floats all = zero();
    for (int i = 0; i < s->size; i++) {
        floats code = lesser(rounded(times(s->above[i], by)), same(s->top));
        floats off = difference(plus_times(base, code, scale), s->x[i]);
        all = plus_times(all, s->absolute ? magnitude(off) : times(off, off), s->w[i]);
    }
    return all;
}

/* Scales and minimums of eight sub-blocks: x ≈ scale * code - min, codes 0 to `top`, neither negative. `steps` spans are
   tried, cut into top + first, top + first + 0.1, … */
INLINE void spans(Spans *s, float first, int steps, float *scales, float *mins) {
    floats low = zero(), high = s->x[0], sum_w = zero(), sum_x = zero(), sum_xx = zero(), wx[32];
    for (int i = 0; i < s->size; i++) {
        low = lesser(s->x[i], low), high = greater(s->x[i], high);
        wx[i] = times(s->w[i], s->x[i]);
        sum_w = plus(sum_w, s->w[i]), sum_x = plus(sum_x, wx[i]), sum_xx = plus_times(sum_xx, wx[i], s->x[i]);
    }
    for (int i = 0; i < s->size; i++) s->above[i] = difference(s->x[i], low);
    floats cuts = inverses(difference(high, low)), best_scale = over(difference(high, low), same(s->top)), best_base = low;
    floats best = misfit(s, times(cuts, same(s->top)), best_scale, best_base);
    for (int step = 0; step < steps; step++) {
        floats by = times(cuts, same(s->top + first + 0.1f * (float)step));
        floats sum_l = zero(), sum_ll = zero(), sum_xl = zero();
        for (int i = 0; i < s->size; i++) {
            floats code = lesser(rounded(times(s->above[i], by)), same(s->top)), wl = times(s->w[i], code);
            sum_l = plus(sum_l, wl), sum_ll = plus_times(sum_ll, wl, code), sum_xl = plus_times(sum_xl, wx[i], code);
        }
        floats divisor = difference(times(sum_w, sum_ll), times(sum_l, sum_l));
        floats scale = over(difference(times(sum_w, sum_xl), times(sum_x, sum_l)), divisor);
        floats base = over(difference(times(sum_ll, sum_x), times(sum_l, sum_xl)), divisor);
        scale = if_less(zero(), base, times(sum_xl, inverses(sum_ll)), scale);
        base = lesser(base, zero());
        floats error = s->absolute ? misfit(s, by, scale, base)  /* or what least squares leave */
                                   : difference(difference(sum_xx, times(scale, sum_xl)), times(base, sum_x));
        error = if_less(zero(), divisor, error, best);
        best_scale = if_less(error, best, scale, best_scale);
        best_base = if_less(error, best, base, best_base);
        best = if_less(error, best, error, best);
    }
    store(scales, greater(best_scale, zero()));
    store(mins, greater(times(best_base, same(-1)), zero()));
}

/* Scales of sub-blocks: x ≈ scale * code, codes -top to top - 1; an error weighs x². */
INLINE void levels(const float *from, int size, float top, float *scales) {
    floats x[32], w[32], wx[32], most = zero(), most_size = zero(), best = zero(), scale = zero();
    turn(x, from, size);
    for (int i = 0; i < size; i++) {
        floats own = magnitude(x[i]);
        most = if_less(most_size, own, x[i], most), most_size = greater(own, most_size);
        w[i] = times(x[i], x[i]), wx[i] = times(w[i], x[i]);
    }
    floats cuts = inverses(most);
    for (int i = 0; i < 19; i++) {
        const int step = i == 0 ? 0 : i <= 9 ? i - 10 : i - 9;
        floats by = times(cuts, same(-(top + 0.1f * (float)step))), sum_xl = zero(), sum_ll = zero();
        for (int k = 0; k < size; k++) {
            floats code = lesser(greater(rounded(times(x[k], by)), same(-top)), same(top - 1));
            sum_xl = plus_times(sum_xl, wx[k], code), sum_ll = plus_times(sum_ll, times(w[k], code), code);
        }
        floats one = times(sum_xl, inverses(sum_ll)), gain = times(sum_xl, one);
        scale = if_less(best, gain, one, scale);
        best = greater(gain, best);
    }
    store(scales, scale);
}

/* Codes of 256 numbers in sub-blocks of `size`, (x + min) / scale rounded, from `low` to `top` and counted from there. */
INLINE void codes_of(uint8_t *codes, const float *x, int size, const float *scales, const float *mins, float low,
                     float top) {
    for (int i = 0; i < 256; i += 8) {
        floats by = same(inverse(scales[i / size])), min = same(mins ? mins[i / size] : 0);
        floats code = rounded(times(plus(load_f32(x + i), min), by));
        store_bytes(codes + i, difference(lesser(greater(code, same(low)), same(top)), same(low)));
    }
}

/* Scales of sub-blocks as whole numbers times one of 16 bits: numbers, which is put at `to`; values become what they then
   are. The largest is cut into `steps`. */
INLINE int share(uint8_t *numbers, float *values, int count, float steps, float low, float top, uint8_t *to) {
    float most = 0;
    for (int i = 0; i < count; i++) most = fabsf(values[i]) > fabsf(most) ? values[i] : most;
    float d = most / steps;
    int failed = put_f16(to, d);
    float by = inverse(low < 0 ? f16(to) : d);
    for (int i = 0; i < count; i++) {
        float number = nearest(values[i] * by, low, top);
        numbers[i] = (uint8_t)(int)number;
        values[i] = f16(to) * number;
    }
    return failed;
}

static int Q2_K_pack(const float *x, uint8_t *to) {
    uint8_t scales[16], mins[16], codes[256];
    float scale[16], min[16];
    Spans s = {.size = 16, .top = 3, .absolute = 1};
    for (int half = 0; half < 2; half++) {
        turn(s.x, x + 128 * half, 16);
        for (int i = 0; i < 16; i++) s.w[i] = magnitude(s.x[i]);
        spans(&s, -0.5f, 16, scale + 8 * half, min + 8 * half);
    }
    int failed = share(scales, scale, 16, 15, 0, 15, to + 80) | share(mins, min, 16, 15, 0, 15, to + 82);
    codes_of(codes, x, 16, scale, min, 0, 3);
    for (int i = 0; i < 16; i++) to[i] = (uint8_t)(scales[i] | mins[i] << 4);
    join(to + 16, codes, 256, 0, 2, 32);
    return failed;
}

static int Q3_K_pack(const float *x, uint8_t *to) {
    uint8_t scales[16], codes[256];
    float scale[16];
    levels(x, 16, 4, scale), levels(x + 128, 16, 4, scale + 8);
    int failed = share(scales, scale, 16, -32, -32, 31, to + 108);
    codes_of(codes, x, 16, scale, NULL, -4, 3);
    for (int i = 0; i < 16; i++) scales[i] = (uint8_t)(scales[i] + 32);
    join(to, codes, 256, 2, 1, 32);
    join(to + 32, codes, 256, 0, 2, 32);
    join(to + 96, scales, 16, 0, 4, 8);
    join(to + 104, scales, 16, 4, 2, 4);
    return failed;
}

INLINE int pack_4_or_5(int bits, float first, int steps, const float *x, uint8_t *to) {
    uint8_t scales[8], mins[8], codes[256];
    float scale[8], min[8], squares[8];
    Spans s = {.size = 32, .top = (float)((1 << bits) - 1), .absolute = 0};
    floats sum = zero();
    turn(s.x, x, 32);
    for (int i = 0; i < 32; i++) sum = plus_times(sum, s.x[i], s.x[i]);
    store(squares, sum);
    for (int i = 0; i < 8; i++) squares[i] = sqrtf(squares[i] / 32);
    for (int i = 0; i < 32; i++) s.w[i] = plus(magnitude(s.x[i]), load_f32(squares));
    spans(&s, first, steps, scale, min);
    int failed = share(scales, scale, 8, 63, 0, 63, to) | share(mins, min, 8, 63, 0, 63, to + 2);
    codes_of(codes, x, 32, scale, min, 0, s.top);
    for (int i = 0; i < 4; i++) {
        to[4 + i] = (uint8_t)(scales[i] | scales[i + 4] >> 4 << 6);
        to[8 + i] = (uint8_t)(mins[i] | mins[i + 4] >> 4 << 6);
        to[12 + i] = (uint8_t)((scales[i + 4] & 15) | (mins[i + 4] & 15) << 4);
    }
    if (bits == 5) join(to + 16, codes, 256, 4, 1, 32);
    join(to + (bits == 5 ? 48 : 16), codes, 256, 0, 4, 32);
    return failed;
}

static int Q4_K_pack(const float *x, uint8_t *to) { return pack_4_or_5(4, -1, 21, x, to); }
static int Q5_K_pack(const float *x, uint8_t *to) { return pack_4_or_5(5, -0.5f, 16, x, to); }

static int Q6_K_pack(const float *x, uint8_t *to) {
    uint8_t codes[256];
    float scale[16];
    levels(x, 16, 32, scale), levels(x + 128, 16, 32, scale + 8);
    int failed = share(to + 192, scale, 16, -128, -128, 127, to + 208);
    codes_of(codes, x, 16, scale, NULL, -32, 31);
    join(to, codes, 256, 0, 4, 64);
    join(to + 128, codes, 256, 4, 2, 32);
    return failed;
}

/* --- rows ---------------------------------------------------------------------------------------------------------- */

/* Whether all numbers are finite and no larger than 2^23: no type has larger steps. */
INLINE int can_be_packed(const float *x, int count) {
    int all = 1;
    for (int i = 0; i < count; i++) all &= fabsf(x[i]) <= 8388608;
    return all;
}

#define PACKING_TYPES(row) \
    row(Q4_0, 32, 18) row(Q4_1, 32, 20) row(Q5_0, 32, 22) row(Q5_1, 32, 24) row(Q8_0, 32, 34) \
    row(Q2_K, 256, 84) row(Q3_K, 256, 110) row(Q4_K, 256, 144) row(Q5_K, 256, 176) row(Q6_K, 256, 210)

static int pack(int type, const float *x, int64_t columns, uint8_t *to) {
    switch (type) {
#define ROW(NAME, block, size) \
        case NAME: \
            for (int64_t at = 0; at < columns; at += block, to += size) \
                if (!can_be_packed(x + at, block) || NAME##_pack(x + at, to)) return 1; \
            return 0;
        PACKING_TYPES(ROW)
#undef ROW
    }
    return 1;
}
