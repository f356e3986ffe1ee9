/* Vectors of AVX2 with FMA and F16C; with AVX-512 VNNI, its byte products on the same 256 bits. */
#include <immintrin.h>

typedef __m256i bytes;
typedef __m256 floats;
#define FINE 1

INLINE bytes load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE bytes nibbles(const uint8_t *p) {
    __m128i a = _mm_loadu_si128((const __m128i *)p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(a, 4), a), _mm256_set1_epi8(15));
}
INLINE bytes field(bytes a, int shift, int mask) {
    return _mm256_and_si256(_mm256_srli_epi16(a, shift), _mm256_set1_epi8((char)mask));
}
INLINE bytes shift_up(bytes a, int by) { return _mm256_slli_epi16(a, by); }  /* no bit of a byte may leave it */
INLINE bytes either(bytes a, bytes b) { return _mm256_or_si256(a, b); }
INLINE bytes minus(bytes a, int b) { return _mm256_sub_epi8(a, _mm256_set1_epi8((char)b)); }
INLINE bytes lookup(const int8_t table[16], bytes a) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), a);
}
INLINE bytes spread_bits(const uint8_t *p, int value) {
    int bits;
    memcpy(&bits, p, 4);
    const bytes which = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const bytes others = _mm256_set1_epi64x(0x7fbfdfeff7fbfdfe);  /* byte i: all bits but bit i */
    bytes repeated = _mm256_or_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), which), others);
    return _mm256_and_si256(_mm256_cmpeq_epi8(repeated, _mm256_set1_epi8(-1)), _mm256_set1_epi8((char)value));
}

INLINE floats zero(void) { return _mm256_setzero_ps(); }
INLINE floats same(float a) { return _mm256_set1_ps(a); }
INLINE floats load_f32(const void *p) { return _mm256_loadu_ps((const float *)p); }
INLINE floats load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE floats load_bf16(const void *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE floats spaced_f16(const uint8_t *p, int step) {
    __m128i all = _mm_setzero_si128();
#define PUT(i) { short one; memcpy(&one, p + step * i, 2); all = _mm_insert_epi16(all, one, i); }
    PUT(0) PUT(1) PUT(2) PUT(3) PUT(4) PUT(5) PUT(6) PUT(7)
#undef PUT
    return _mm256_cvtph_ps(all);
}
INLINE floats widen(uint64_t a) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)a))); }
INLINE floats widen_signed(uint64_t a) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((long long)a)));
}
INLINE void store(float *p, floats a) { _mm256_storeu_ps(p, a); }
INLINE floats plus(floats a, floats b) { return _mm256_add_ps(a, b); }
INLINE floats times(floats a, floats b) { return _mm256_mul_ps(a, b); }
INLINE floats plus_times(floats sum, floats a, floats b) { return _mm256_fmadd_ps(a, b, sum); }
INLINE floats over(floats a, floats b) { return _mm256_div_ps(a, b); }
INLINE floats rounded(floats a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE floats lesser(floats a, floats b) { return _mm256_min_ps(a, b); }  /* b where a is NaN */
INLINE floats greater(floats a, floats b) { return _mm256_max_ps(a, b); }
INLINE floats if_less(floats a, floats b, floats yes, floats no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE floats power_of_two(floats a) {
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
INLINE floats halves(const float *p) {
    floats both = _mm256_castpd_ps(_mm256_broadcast_sd((const double *)p));
    return _mm256_permutevar_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}
INLINE float total(floats a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

INLINE floats dot_unsigned(bytes w, const int8_t *x) {
#ifdef __AVX512VNNI__
    return _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(_mm256_setzero_si256(), w, load(x)));
#else
    __m256i pairs = _mm256_maddubs_epi16(w, load(x));  /* below 2 * 128 * 128: it does not saturate */
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}
INLINE floats dot_signed(bytes w, const int8_t *x) {
    bytes turned = _mm256_sign_epi8(load(x), w);  /* activations are never -128 */
    return dot_unsigned(_mm256_abs_epi8(w), (const int8_t *)&turned);
}
INLINE bytes widened(bytes w, int half) {
    return _mm256_cvtepi8_epi16(half ? _mm256_extracti128_si256(w, 1) : _mm256_castsi256_si128(w));
}
INLINE bytes add_pairs(bytes sums, bytes a, bytes b) {
#ifdef __AVX512VNNI__
    return _mm256_dpwssd_epi32(sums, a, b);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
#endif
}
INLINE floats dot_fine(bytes w, const int16_t *x) {
    bytes low = _mm256_madd_epi16(widened(w, 0), load(x));
    return _mm256_cvtepi32_ps(add_pairs(low, widened(w, 1), load(x + 16)));
}
/* of every four columns two vectors: of the rows 0, 1, 4, 5, and of 2, 3, 6, 7 */
INLINE void lay_fine(int16_t *to, int row, bytes w) {
    int16_t wide[32];
    for (int half = 0; half < 2; half++) _mm256_storeu_si256((__m256i *)(wide + 16 * half), widened(w, half));
    to += row / 2 % 2 * 16 + row / 4 * 8 + row % 2 * 4;
    for (int k = 0; k < 8; k++) memcpy(to + 32 * k, wide + 4 * k, 8);
}
#if defined(__GNUC__)  /* GCC would multiply first and add in the end, for which there are not enough registers */
#define HERE(a) __asm__("" : "+x"(a))
#else
#define HERE(a) ((void)(a))
#endif
INLINE void dots_fine(const int16_t *w, const int16_t *const *x, int positions, floats *to) {
    bytes sums[4][2];
    UNROLL(4)
    for (int p = 0; p < positions; p++) sums[p][0] = sums[p][1] = _mm256_setzero_si256();
    UNROLL(8)
    for (int k = 0; k < 8; k++) {
        bytes first = load(w + 32 * k), second = load(w + 32 * k + 16);
        UNROLL(4)
        for (int p = 0; p < positions; p++) {
            long long four;
            memcpy(&four, x[p] + 4 * k, 8);
            bytes with = _mm256_set1_epi64x(four);
            sums[p][0] = add_pairs(sums[p][0], first, with);
            sums[p][1] = add_pairs(sums[p][1], second, with);
            HERE(sums[p][0]);
            HERE(sums[p][1]);
        }
    }
    UNROLL(4)
    for (int p = 0; p < positions; p++) to[p] = _mm256_cvtepi32_ps(_mm256_hadd_epi32(sums[p][0], sums[p][1]));
}

INLINE void dots(const uint8_t *w, int steps, const int8_t *const *x, int positions, int sign, int fit, floats *to) {
    __m256i sums[4], pairs[4];
    UNROLL(4)
    for (int p = 0; p < positions; p++) sums[p] = _mm256_setzero_si256();
    UNROLL(8)
    for (int k = 0; k < steps; k++) {
        bytes codes = load(w + 32 * k), plain = sign ? _mm256_abs_epi8(codes) : codes;
        UNROLL(4)
        for (int p = 0; p < positions; p++) {
            int four;
            memcpy(&four, x[p] + 4 * k, 4);
            bytes with = _mm256_set1_epi32(four);
            if (sign) with = _mm256_sign_epi8(with, codes);
#ifdef __AVX512VNNI__
            sums[p] = _mm256_dpbusd_epi32(sums[p], plain, with);
            (void)pairs, (void)fit;
#else
            __m256i pair = _mm256_maddubs_epi16(plain, with);
            pairs[p] = k % fit ? _mm256_add_epi16(pairs[p], pair) : pair;
            HERE(pairs[p]);
            if (k % fit == fit - 1 || k == steps - 1)
                sums[p] = _mm256_add_epi32(sums[p], _mm256_madd_epi16(pairs[p], _mm256_set1_epi16(1)));
            HERE(sums[p]);
#endif
        }
    }
    UNROLL(4)
    for (int p = 0; p < positions; p++) to[p] = _mm256_cvtepi32_ps(sums[p]);
}

INLINE void store_scaled(float *to, bytes w, const float scale[2], const float min[2]) {
    for (int half = 0; half < 2; half++) {
        __m128i part = half ? _mm256_extracti128_si256(w, 1) : _mm256_castsi256_si128(w);
        floats a = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(part));
        floats b = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(part, 8)));
        store(to + 16 * half, _mm256_sub_ps(times(same(scale[half]), a), same(min[half])));
        store(to + 16 * half + 8, _mm256_sub_ps(times(same(scale[half]), b), same(min[half])));
    }
}

INLINE float largest(const float *x) {
    floats top = zero();
    for (int i = 0; i < 32; i += 8) top = _mm256_max_ps(_mm256_andnot_ps(same(-0.0f), load_f32(x + i)), top);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
INLINE void round_bytes(int8_t *to, const float *x, float by, int sums[2]) {
    __m256i part[4];
    for (int i = 0; i < 4; i++) part[i] = _mm256_cvtps_epi32(times(load_f32(x + 8 * i), same(by)));
    __m256i low = _mm256_packs_epi32(part[0], part[1]), high = _mm256_packs_epi32(part[2], part[3]);
    __m256i all = _mm256_max_epi8(_mm256_packs_epi16(low, high), _mm256_set1_epi8(-127));
    all = _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)to, all);
    __m256i four = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), all), _mm256_set1_epi16(1));
    four = _mm256_hadd_epi32(four, four);
    four = _mm256_hadd_epi32(four, four);
    sums[0] = _mm256_extract_epi32(four, 0);
    sums[1] = _mm256_extract_epi32(four, 4);
}
INLINE void round_shorts(int16_t *to, const float *x, float by) {
    for (int i = 0; i < 32; i += 16) {
        __m256i a = _mm256_cvtps_epi32(times(load_f32(x + i), same(by)));
        __m256i b = _mm256_cvtps_epi32(times(load_f32(x + i + 8), same(by)));
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
    }
}
