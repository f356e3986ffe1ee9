/* The intrinsics of NEON that simd_neon.h uses, in plain C, lane by lane, as Arm's manual says what they do: so that its
   lines run, and are tested, on other CPUs. `tests.oracles.other_cpus` holds them to the instructions themselves. */
#ifndef EMULATED_NEON
#define EMULATED_NEON

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __linux__  /* the emulated CPU has all that is asked for */
#include <sys/auxv.h>
#define getauxval(what) ((void)(what), ~0ul)
#endif

#define VECTOR(type, bytes, name) typedef type name __attribute__((vector_size(bytes)));
VECTOR(int8_t, 8, int8x8_t) VECTOR(uint8_t, 8, uint8x8_t) VECTOR(int16_t, 8, int16x4_t) VECTOR(uint16_t, 8, uint16x4_t)
VECTOR(int8_t, 16, int8x16_t) VECTOR(uint8_t, 16, uint8x16_t) VECTOR(int16_t, 16, int16x8_t)
VECTOR(uint16_t, 16, uint16x8_t) VECTOR(int32_t, 16, int32x4_t) VECTOR(uint32_t, 16, uint32x4_t)
VECTOR(float, 16, float32x4_t)
typedef struct { uint16x4_t v; } float16x4_t;
typedef struct { uint16x8_t v; } float16x8_t;
typedef struct { int8x16_t val[2]; } int8x16x2_t;
typedef struct { float32x4_t val[2]; } float32x4x2_t;

/* Inline, they take minutes to compile; without optimisation, like what is around them, they run for half a minute. */
#if defined(__GNUC__) && !defined(__clang__)
#define NEON static __attribute__((noinline, unused, optimize("O2")))
#else
#define NEON static __attribute__((noinline, unused))
#endif
/* a function whose lane i is an expression */
#define LANES(type, count, name, arguments, lane) \
    NEON type name arguments { type r = {0}; for (int i = 0; i < count; i++) r[i] = (lane); return r; }
#define CAST(to, name, from) NEON to name(from a) { return (to)a; }

LANES(int8x16_t, 16, vld1q_s8, (const int8_t *p), p[i])
LANES(uint8x16_t, 16, vld1q_u8, (const uint8_t *p), p[i])
LANES(float32x4_t, 4, vld1q_f32, (const float *p), p[i])
NEON void vst1q_s8(int8_t *p, int8x16_t a) { for (int i = 0; i < 16; i++) p[i] = a[i]; }
NEON void vst1q_f32(float *p, float32x4_t a) { for (int i = 0; i < 4; i++) p[i] = a[i]; }
NEON uint8x8_t vcreate_u8(uint64_t a) { uint8x8_t r; memcpy(&r, &a, 8); return r; }
NEON int8x8_t vcreate_s8(uint64_t a) { int8x8_t r; memcpy(&r, &a, 8); return r; }

LANES(uint8x8_t, 8, vdup_n_u8, (uint8_t a), a)
LANES(int8x16_t, 16, vdupq_n_s8, (int8_t a), a)
LANES(uint8x16_t, 16, vdupq_n_u8, (uint8_t a), a)
LANES(int32x4_t, 4, vdupq_n_s32, (int32_t a), a)
LANES(float32x4_t, 4, vdupq_n_f32, (float a), a)

CAST(int8x16_t, vreinterpretq_s8_u8, uint8x16_t)
CAST(uint8x16_t, vreinterpretq_u8_s8, int8x16_t)
CAST(int8x16_t, vreinterpretq_s8_s32, int32x4_t)
CAST(uint16x8_t, vreinterpretq_u16_u8, uint8x16_t)
CAST(float32x4_t, vreinterpretq_f32_u32, uint32x4_t)
CAST(float32x4_t, vreinterpretq_f32_s32, int32x4_t)
NEON float16x8_t vreinterpretq_f16_u8(uint8x16_t a) { return (float16x8_t){(uint16x8_t)a}; }

LANES(int8x8_t, 8, vget_low_s8, (int8x16_t a), a[i])
LANES(int8x8_t, 8, vget_high_s8, (int8x16_t a), a[i + 8])
LANES(int16x4_t, 4, vget_low_s16, (int16x8_t a), a[i])
LANES(int16x4_t, 4, vget_high_s16, (int16x8_t a), a[i + 4])
LANES(uint16x4_t, 4, vget_low_u16, (uint16x8_t a), a[i])
LANES(uint16x4_t, 4, vget_high_u16, (uint16x8_t a), a[i + 4])
NEON float16x4_t vget_low_f16(float16x8_t a) { return (float16x4_t){vget_low_u16(a.v)}; }
NEON float16x4_t vget_high_f16(float16x8_t a) { return (float16x4_t){vget_high_u16(a.v)}; }
LANES(int8x16_t, 16, vcombine_s8, (int8x8_t a, int8x8_t b), i < 8 ? a[i] : b[i - 8])
LANES(uint8x16_t, 16, vcombine_u8, (uint8x8_t a, uint8x8_t b), i < 8 ? a[i] : b[i - 8])
LANES(int16x8_t, 8, vcombine_s16, (int16x4_t a, int16x4_t b), i < 4 ? a[i] : b[i - 4])

LANES(uint8x16_t, 16, vandq_u8, (uint8x16_t a, uint8x16_t b), a[i] & b[i])
LANES(int8x16_t, 16, vorrq_s8, (int8x16_t a, int8x16_t b), a[i] | b[i])
LANES(uint8x16_t, 16, vtstq_u8, (uint8x16_t a, uint8x16_t b), a[i] & b[i] ? 255 : 0)
LANES(int8x16_t, 16, vsubq_s8, (int8x16_t a, int8x16_t b), (int8_t)(a[i] - b[i]))
LANES(int8x16_t, 16, vmaxq_s8, (int8x16_t a, int8x16_t b), a[i] > b[i] ? a[i] : b[i])
LANES(int32x4_t, 4, vaddq_s32, (int32x4_t a, int32x4_t b), a[i] + b[i])
LANES(int8x16_t, 16, vqtbl1q_s8, (int8x16_t a, uint8x16_t at), at[i] < 16 ? a[at[i] & 15] : 0)
/* shifts: a negative number is one to the right, and all eight bits of the lane are out from 8 on */
LANES(uint8x16_t, 16, vshlq_u8, (uint8x16_t a, int8x16_t by),
      (uint8_t)(by[i] <= -8 || by[i] >= 8 ? 0 : by[i] < 0 ? a[i] >> -by[i] : a[i] << by[i]))
LANES(int8x16_t, 16, vshlq_s8, (int8x16_t a, int8x16_t by),
      (int8_t)(by[i] <= -8 ? (a[i] < 0 ? -1 : 0) : by[i] >= 8 ? 0 : by[i] < 0 ? a[i] >> -by[i] : (uint8_t)a[i] << by[i]))
LANES(uint8x16_t, 16, vshrq_n_u8, (uint8x16_t a, int by), (uint8_t)(a[i] >> by))
LANES(int32x4_t, 4, vshlq_n_s32, (int32x4_t a, int by), (int32_t)((uint32_t)a[i] << by))
LANES(uint32x4_t, 4, vshll_n_u16, (uint16x4_t a, int by), (uint32_t)a[i] << by)

LANES(int16x8_t, 8, vmovl_s8, (int8x8_t a), a[i])
LANES(uint16x8_t, 8, vmovl_u8, (uint8x8_t a), a[i])
LANES(int32x4_t, 4, vmovl_s16, (int16x4_t a), a[i])
LANES(uint32x4_t, 4, vmovl_u16, (uint16x4_t a), a[i])
LANES(int16x8_t, 8, vmull_s8, (int8x8_t a, int8x8_t b), (int16_t)(a[i] * b[i]))
LANES(int32x4_t, 4, vpaddlq_s16, (int16x8_t a), a[2 * i] + a[2 * i + 1])
LANES(int32x4_t, 4, vpaddq_s32, (int32x4_t a, int32x4_t b), i < 2 ? a[2 * i] + a[2 * i + 1] : b[2 * i - 4] + b[2 * i - 3])
LANES(int32x4_t, 4, vdotq_s32, (int32x4_t sum, int8x16_t a, int8x16_t b),
      sum[i] + a[4 * i] * b[4 * i] + a[4 * i + 1] * b[4 * i + 1] + a[4 * i + 2] * b[4 * i + 2] + a[4 * i + 3] * b[4 * i + 3])
LANES(int16x4_t, 4, vqmovn_s32, (int32x4_t a), (int16_t)(a[i] > 32767 ? 32767 : a[i] < -32768 ? -32768 : a[i]))
LANES(int8x8_t, 8, vqmovn_s16, (int16x8_t a), (int8_t)(a[i] > 127 ? 127 : a[i] < -128 ? -128 : a[i]))
NEON int16_t vaddlvq_s8(int8x16_t a) { int sum = 0; for (int i = 0; i < 16; i++) sum += a[i]; return (int16_t)sum; }

LANES(float32x4_t, 4, vaddq_f32, (float32x4_t a, float32x4_t b), a[i] + b[i])
LANES(float32x4_t, 4, vsubq_f32, (float32x4_t a, float32x4_t b), a[i] - b[i])
LANES(float32x4_t, 4, vmulq_f32, (float32x4_t a, float32x4_t b), a[i] * b[i])
LANES(float32x4_t, 4, vmulq_n_f32, (float32x4_t a, float b), a[i] * b)
LANES(float32x4_t, 4, vdivq_f32, (float32x4_t a, float32x4_t b), a[i] / b[i])
LANES(float32x4_t, 4, vfmaq_f32, (float32x4_t sum, float32x4_t a, float32x4_t b), fmaf(a[i], b[i], sum[i]))
LANES(float32x4_t, 4, vabsq_f32, (float32x4_t a), fabsf(a[i]))
LANES(float32x4_t, 4, vrndnq_f32, (float32x4_t a), rintf(a[i]))
LANES(uint32x4_t, 4, vcltq_f32, (float32x4_t a, float32x4_t b), a[i] < b[i] ? ~0u : 0)
NEON float32x4_t vbslq_f32(uint32x4_t which, float32x4_t a, float32x4_t b) {
    return (float32x4_t)((which & (uint32x4_t)a) | (~which & (uint32x4_t)b));
}
/* the number where one of both is none */
LANES(float32x4_t, 4, vmaxnmq_f32, (float32x4_t a, float32x4_t b), a[i] != a[i] ? b[i] : b[i] != b[i] || a[i] > b[i] ? a[i] : b[i])
NEON float vaddvq_f32(float32x4_t a) { return (a[0] + a[1]) + (a[2] + a[3]); }
NEON float vmaxvq_f32(float32x4_t a) {  /* NaN where one is NaN */
    float top = a[0];
    for (int i = 1; i < 4; i++) top = a[i] != a[i] || a[i] > top ? a[i] : top;
    return top;
}

LANES(float32x4_t, 4, vcvtq_f32_s32, (int32x4_t a), (float)a[i])
LANES(float32x4_t, 4, vcvtq_f32_u32, (uint32x4_t a), (float)a[i])
NEON int32_t emulated_whole(float a) {  /* the nearest, of two the even one, within bounds; 0 for NaN */
    return a != a ? 0 : a >= 2147483648.0f ? INT32_MAX : a < -2147483648.0f ? INT32_MIN : (int32_t)rintf(a);
}
LANES(int32x4_t, 4, vcvtnq_s32_f32, (float32x4_t a), emulated_whole(a[i]))
NEON float emulated_half(uint16_t a) {
    float value = ldexpf((float)(a & 0x3ff), -24);
    if (a >> 10 & 31) value = ldexpf((float)((a & 0x3ff) | 0x400), (a >> 10 & 31) - 25);
    if ((a >> 10 & 31) == 31) value = a & 0x3ff ? NAN : INFINITY;
    return a >> 15 ? -value : value;
}
LANES(float32x4_t, 4, vcvt_f32_f16, (float16x4_t a), emulated_half(a.v[i]))

#endif
