/* Vectors of ARM's NEON (aarch64), with its dot products of bytes where the compiler was told of them. */
#include <arm_neon.h>

typedef int8x16x2_t bytes;
typedef float32x4x2_t floats;
#define FINE 0  /* products of 16 bits would take four times as long */

#define BOTH(type, expression) ((type){{ (expression(0)), (expression(1)) }})

INLINE bytes load(const void *p) {
    const int8_t *at = (const int8_t *)p;
    return (bytes){{vld1q_s8(at), vld1q_s8(at + 16)}};
}
INLINE bytes nibbles(const uint8_t *p) {
    uint8x16_t a = vld1q_u8(p);
    return (bytes){{vreinterpretq_s8_u8(vandq_u8(a, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(a, 4))}};
}
INLINE bytes field(bytes a, int shift, int mask) {
    int8x16_t by = vdupq_n_s8((int8_t)-shift);
    uint8x16_t only = vdupq_n_u8((uint8_t)mask);
#define PART(i) vreinterpretq_s8_u8(vandq_u8(vshlq_u8(vreinterpretq_u8_s8(a.val[i]), by), only))
    return BOTH(bytes, PART);
#undef PART
}
INLINE bytes shift_up(bytes a, int by) {
    int8x16_t up = vdupq_n_s8((int8_t)by);
    return (bytes){{vshlq_s8(a.val[0], up), vshlq_s8(a.val[1], up)}};
}
INLINE bytes either(bytes a, bytes b) { return (bytes){{vorrq_s8(a.val[0], b.val[0]), vorrq_s8(a.val[1], b.val[1])}}; }
INLINE bytes minus(bytes a, int b) {
    int8x16_t by = vdupq_n_s8((int8_t)b);
    return (bytes){{vsubq_s8(a.val[0], by), vsubq_s8(a.val[1], by)}};
}
INLINE bytes lookup(const int8_t table[16], bytes a) {
    int8x16_t t = vld1q_s8(table);
#define PART(i) vqtbl1q_s8(t, vreinterpretq_u8_s8(a.val[i]))
    return BOTH(bytes, PART);
#undef PART
}
INLINE bytes spread_bits(const uint8_t *p, int value) {
    const uint8_t one[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t bit = vld1q_u8(one), set = vdupq_n_u8((uint8_t)value);
#define PART(i) vreinterpretq_s8_u8( \
    vandq_u8(vtstq_u8(vcombine_u8(vdup_n_u8(p[2 * i]), vdup_n_u8(p[2 * i + 1])), bit), set))
    return BOTH(bytes, PART);
#undef PART
}

INLINE floats zero(void) { return (floats){{vdupq_n_f32(0), vdupq_n_f32(0)}}; }
INLINE floats same(float a) { return (floats){{vdupq_n_f32(a), vdupq_n_f32(a)}}; }
INLINE floats load_f32(const void *p) {
    const float *at = (const float *)p;
    return (floats){{vld1q_f32(at), vld1q_f32(at + 4)}};
}
INLINE floats load_f16(const void *p) {
    float16x8_t a = vreinterpretq_f16_u8(vld1q_u8((const uint8_t *)p));
    return (floats){{vcvt_f32_f16(vget_low_f16(a)), vcvt_f32_f16(vget_high_f16(a))}};
}
INLINE floats load_bf16(const void *p) {
    uint16x8_t a = vreinterpretq_u16_u8(vld1q_u8((const uint8_t *)p));
    uint32x4_t low = vshll_n_u16(vget_low_u16(a), 16), high = vshll_n_u16(vget_high_u16(a), 16);
    return (floats){{vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)}};
}
INLINE floats spaced_f16(const uint8_t *p, int step) {
    uint8_t all[16];
    for (int i = 0; i < 8; i++) memcpy(all + 2 * i, p + step * i, 2);
    return load_f16(all);
}
INLINE floats widen(uint64_t a) {
    uint16x8_t b = vmovl_u8(vcreate_u8(a));
    return (floats){{vcvtq_f32_u32(vmovl_u16(vget_low_u16(b))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(b)))}};
}
INLINE floats widen_signed(uint64_t a) {
    int16x8_t b = vmovl_s8(vcreate_s8(a));
    return (floats){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(b)))}};
}
INLINE void store(float *p, floats a) { vst1q_f32(p, a.val[0]); vst1q_f32(p + 4, a.val[1]); }
INLINE floats plus(floats a, floats b) { return (floats){{vaddq_f32(a.val[0], b.val[0]), vaddq_f32(a.val[1], b.val[1])}}; }
INLINE floats times(floats a, floats b) { return (floats){{vmulq_f32(a.val[0], b.val[0]), vmulq_f32(a.val[1], b.val[1])}}; }
INLINE floats plus_times(floats sum, floats a, floats b) {
    return (floats){{vfmaq_f32(sum.val[0], a.val[0], b.val[0]), vfmaq_f32(sum.val[1], a.val[1], b.val[1])}};
}
INLINE floats over(floats a, floats b) { return (floats){{vdivq_f32(a.val[0], b.val[0]), vdivq_f32(a.val[1], b.val[1])}}; }
INLINE floats rounded(floats a) { return (floats){{vrndnq_f32(a.val[0]), vrndnq_f32(a.val[1])}}; }
INLINE floats if_less(floats a, floats b, floats yes, floats no) {
#define PART(i) vbslq_f32(vcltq_f32(a.val[i], b.val[i]), yes.val[i], no.val[i])
    return BOTH(floats, PART);
#undef PART
}
INLINE floats lesser(floats a, floats b) { return if_less(a, b, a, b); }  /* b where one is NaN, as elsewhere */
INLINE floats greater(floats a, floats b) { return if_less(b, a, a, b); }
INLINE floats power_of_two(floats a) {
#define PART(i) vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(a.val[i]), vdupq_n_s32(127)), 23))
    return BOTH(floats, PART);
#undef PART
}
INLINE floats halves(const float *p) { return (floats){{vdupq_n_f32(p[0]), vdupq_n_f32(p[1])}}; }
INLINE float total(floats a) { return vaddvq_f32(vaddq_f32(a.val[0], a.val[1])); }

/* sum and, lane by lane, four products of bytes */
INLINE int32x4_t dot(int32x4_t sum, int8x16_t a, int8x16_t b) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(sum, a, b);
#else
    int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}
INLINE floats dot_signed(bytes w, const int8_t *x) {
    const int32x4_t none = vdupq_n_s32(0);
    return (floats){{vcvtq_f32_s32(dot(none, w.val[0], vld1q_s8(x))), vcvtq_f32_s32(dot(none, w.val[1], vld1q_s8(x + 16)))}};
}
INLINE floats dot_unsigned(bytes w, const int8_t *x) { return dot_signed(w, x); }  /* below 128: the same bytes */

INLINE void dots(const uint8_t *w, int steps, const int8_t *const *x, int positions, int sign, int fit, floats *to) {
    int32x4_t sums[4][2];
    (void)sign, (void)fit;
    UNROLL(4)
    for (int p = 0; p < positions; p++) sums[p][0] = sums[p][1] = vdupq_n_s32(0);
    UNROLL(8)
    for (int k = 0; k < steps; k++) {
        bytes codes = load(w + 32 * k);
        UNROLL(4)
        for (int p = 0; p < positions; p++) {
            int32_t four;
            memcpy(&four, x[p] + 4 * k, 4);
            int8x16_t with = vreinterpretq_s8_s32(vdupq_n_s32(four));
            sums[p][0] = dot(sums[p][0], codes.val[0], with);
            sums[p][1] = dot(sums[p][1], codes.val[1], with);
        }
    }
    UNROLL(4)
    for (int p = 0; p < positions; p++) to[p] = (floats){{vcvtq_f32_s32(sums[p][0]), vcvtq_f32_s32(sums[p][1])}};
}

INLINE void store_scaled(float *to, bytes w, const float scale[2], const float min[2]) {
    for (int half = 0; half < 2; half++) {
        int16x8_t wide[2] = {vmovl_s8(vget_low_s8(w.val[half])), vmovl_s8(vget_high_s8(w.val[half]))};
        float32x4_t s = vdupq_n_f32(scale[half]), m = vdupq_n_f32(min[half]);
        for (int i = 0; i < 2; i++) {
            float32x4_t a = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide[i])));
            float32x4_t b = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide[i])));
            vst1q_f32(to + 16 * half + 8 * i, vsubq_f32(vmulq_f32(s, a), m));
            vst1q_f32(to + 16 * half + 8 * i + 4, vsubq_f32(vmulq_f32(s, b), m));
        }
    }
}

INLINE float largest(const float *x) {
    float32x4_t top = vdupq_n_f32(0);
    for (int i = 0; i < 32; i += 4) top = vmaxnmq_f32(top, vabsq_f32(vld1q_f32(x + i)));
    return vmaxvq_f32(top);
}
INLINE void round_bytes(int8_t *to, const float *x, float by, int sums[2]) {
    for (int half = 0; half < 2; half++) {
        int16x8_t part[2];
        for (int i = 0; i < 2; i++) {
            const float *at = x + 16 * half + 8 * i;
            int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(at), by));
            int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(at + 4), by));
            part[i] = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
        }
        int8x16_t all = vcombine_s8(vqmovn_s16(part[0]), vqmovn_s16(part[1]));
        all = vmaxq_s8(all, vdupq_n_s8(-127));
        vst1q_s8(to + 16 * half, all);
        sums[half] = vaddlvq_s8(all);
    }
}
#undef BOTH
