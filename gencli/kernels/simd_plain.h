/* Vectors as plain arrays: what every compiler and CPU has. `bytes`: 32 weights or activations; `floats`: 8 sums. */

typedef struct { uint8_t v[32]; } bytes;
typedef struct { float v[8]; } floats;

#define EACH(n) for (int i = 0; i < (n); i++)

INLINE bytes load(const void *p) { bytes r; memcpy(r.v, p, 32); return r; }
/* 16 bytes of two weights each → the low halves, then the high ones */
INLINE bytes nibbles(const uint8_t *p) { bytes r; EACH(16) { r.v[i] = p[i] & 15; r.v[i + 16] = p[i] >> 4; } return r; }
INLINE bytes field(bytes a, int shift, int mask) { EACH(32) a.v[i] = (uint8_t)(a.v[i] >> shift & mask); return a; }
INLINE bytes shift_up(bytes a, int by) { EACH(32) a.v[i] = (uint8_t)(a.v[i] << by); return a; }
INLINE bytes either(bytes a, bytes b) { EACH(32) a.v[i] |= b.v[i]; return a; }
INLINE bytes minus(bytes a, int b) { EACH(32) a.v[i] = (uint8_t)(a.v[i] - b); return a; }
INLINE bytes lookup(const int8_t table[16], bytes a) { EACH(32) a.v[i] = (uint8_t)table[a.v[i] & 15]; return a; }
/* bit i of a 32-bit number → byte i, 0 or `value` */
INLINE bytes spread_bits(const uint8_t *p, int value) {
    bytes r;
    EACH(32) r.v[i] = p[i / 8] >> i % 8 & 1 ? (uint8_t)value : 0;
    return r;
}

INLINE floats zero(void) { floats r = {{0}}; return r; }
INLINE floats same(float a) { floats r; EACH(8) r.v[i] = a; return r; }
INLINE floats load_f32(const void *p) { floats r; memcpy(r.v, p, 32); return r; }
INLINE floats load_f16(const void *p) { floats r; EACH(8) r.v[i] = f16((const uint8_t *)p + 2 * i); return r; }
INLINE floats load_bf16(const void *p) { floats r; EACH(8) r.v[i] = bf16((const uint8_t *)p + 2 * i); return r; }
INLINE floats spaced_f16(const uint8_t *p, int step) { floats r; EACH(8) r.v[i] = f16(p + step * i); return r; }
/* eight bytes of a number, without and with a sign */
INLINE floats widen(uint64_t a) { floats r; EACH(8) r.v[i] = (float)(a >> 8 * i & 255); return r; }
INLINE floats widen_signed(uint64_t a) { floats r; EACH(8) r.v[i] = (float)(int8_t)(a >> 8 * i & 255); return r; }
INLINE void store(float *p, floats a) { memcpy(p, a.v, 32); }
INLINE floats plus(floats a, floats b) { EACH(8) a.v[i] += b.v[i]; return a; }
INLINE floats times(floats a, floats b) { EACH(8) a.v[i] *= b.v[i]; return a; }
INLINE floats plus_times(floats sum, floats a, floats b) { EACH(8) sum.v[i] += a.v[i] * b.v[i]; return sum; }
INLINE floats over(floats a, floats b) { EACH(8) a.v[i] /= b.v[i]; return a; }
/* the nearest whole numbers (of two the even one) of numbers below 2^22; larger ones as they are, or nearly */
INLINE floats rounded(floats a) { EACH(8) a.v[i] = (a.v[i] + 12582912) - 12582912; return a; }
INLINE floats lesser(floats a, floats b) { EACH(8) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
INLINE floats greater(floats a, floats b) { EACH(8) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
/* lane by lane, a < b ? yes : no */
INLINE floats if_less(floats a, floats b, floats yes, floats no) {
    EACH(8) yes.v[i] = a.v[i] < b.v[i] ? yes.v[i] : no.v[i];
    return yes;
}
/* 2 to whole numbers from -126 to 127 */
INLINE floats power_of_two(floats a) {
    EACH(8) {
        int32_t bits = (int32_t)((uint32_t)(a.v[i] == a.v[i] ? (int)a.v[i] + 127 : 0) << 23);
        memcpy(a.v + i, &bits, 4);
    }
    return a;
}
/* two numbers → lanes 0 to 3 have the first, 4 to 7 the second */
INLINE floats halves(const float *p) { floats r; EACH(8) r.v[i] = p[i / 4]; return r; }
INLINE float total(floats a) { float r = 0; EACH(8) r += a.v[i]; return r; }

#define FINE 1  /* whether Q8_0's activations have 16 bits */

/* lane i: the sum of the products of bytes 4i to 4i + 3; weights are unsigned below 128, or signed, and signed with fine
   activations */
#define DOT(name, weight, activation) \
    INLINE floats name(bytes w, const activation *x) { \
        floats r; \
        EACH(8) { \
            int sum = 0; \
            for (int j = 4 * i; j < 4 * i + 4; j++) sum += (weight)w.v[j] * x[j]; \
            r.v[i] = (float)sum; \
        } \
        return r; \
    }
DOT(dot_unsigned, uint8_t, int8_t) DOT(dot_signed, int8_t, int8_t) DOT(dot_fine, int8_t, int16_t)
#undef DOT

/* one of eight rows of 32 weights, as dots_fine wants them */
INLINE void lay_fine(int16_t *to, int row, bytes w) { EACH(32) to[32 * row + i] = (int8_t)w.v[i]; }
/* lane r: the sum of the products of row r with 32 activations */
INLINE void dots_fine(const int16_t *w, const int16_t *const *x, int positions, floats *to) {
    for (int p = 0; p < positions; p++)
        for (int r = 0; r < 8; r++) {
            int sum = 0;
            EACH(32) sum += w[32 * r + i] * x[p][i];
            to[p].v[r] = (float)sum;
        }
}

/* lane r: the sum of the products of the four weights of row r with four activations, over `steps` of such vectors.
   fit: how many of the sums of two products can be added up in 16 bits, where that is quicker */
INLINE void dots(const uint8_t *w, int steps, const int8_t *const *x, int positions, int sign, int fit, floats *to) {
    (void)fit;
    for (int p = 0; p < positions; p++)
        EACH(8) {
            int sum = 0;
            for (int k = 0; k < 4 * steps; k++) {
                int code = w[32 * (k / 4) + 4 * i + k % 4];
                sum += (sign ? (int8_t)code : code) * x[p][k];
            }
            to[p].v[i] = (float)sum;
        }
}

/* 32 signed bytes → floats: byte * scale - min, with a scale and a min for each half */
INLINE void store_scaled(float *to, bytes w, const float scale[2], const float min[2]) {
    EACH(32) to[i] = scale[i / 16] * (float)(int8_t)w.v[i] - min[i / 16];
}

INLINE float largest(const float *x) {  /* of 32 magnitudes */
    float top = 0;
    EACH(32) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    return top;
}
/* 32 floats * by → the nearest bytes (of two the even one); the sums of both halves */
INLINE void round_bytes(int8_t *to, const float *x, float by, int sums[2]) {
    sums[0] = sums[1] = 0;
    EACH(32) {
        float value = rintf(x[i] * by);
        to[i] = (int8_t)(value > 127 ? 127 : value > -127 ? value : -127);  /* NaN becomes -127 */
        sums[i / 16] += to[i];
    }
}
/* the same to 16 bits */
INLINE void round_shorts(int16_t *to, const float *x, float by) {
    EACH(32) {
        float value = rintf(x[i] * by);
        to[i] = (int16_t)(value > 32767 ? 32767 : value > -32767 ? value : -32767);
    }
}
#undef EACH
