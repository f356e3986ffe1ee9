/* The two intrinsics of AVX-512 VNNI that simd_avx2.h uses, in plain C: so that its lines run, and are tested, where AVX2
   is. Included before all else. */
#include <immintrin.h>
#include <stdint.h>

/* sum and, lane by lane, four products of a byte without a sign and one with a sign; 32 bits, which wrap around */
static inline __m256i emulated_dpbusd(__m256i sum, __m256i a, __m256i b) {
    uint32_t sums[8];
    uint8_t as[32];
    int8_t bs[32];
    _mm256_storeu_si256((__m256i *)sums, sum);
    _mm256_storeu_si256((__m256i *)as, a);
    _mm256_storeu_si256((__m256i *)bs, b);
    for (int i = 0; i < 32; i++) sums[i / 4] += (uint32_t)(as[i] * bs[i]);
    return _mm256_loadu_si256((const __m256i *)sums);
}
/* sum and, lane by lane, two products of numbers of 16 bits with a sign */
static inline __m256i emulated_dpwssd(__m256i sum, __m256i a, __m256i b) {
    uint32_t sums[8];
    int16_t as[16], bs[16];
    _mm256_storeu_si256((__m256i *)sums, sum);
    _mm256_storeu_si256((__m256i *)as, a);
    _mm256_storeu_si256((__m256i *)bs, b);
    for (int i = 0; i < 16; i++) sums[i / 2] += (uint32_t)(as[i] * bs[i]);
    return _mm256_loadu_si256((const __m256i *)sums);
}
#define _mm256_dpbusd_epi32 emulated_dpbusd
#define _mm256_dpwssd_epi32 emulated_dpwssd
#define __AVX512VNNI__ 1
#define __builtin_cpu_supports(name) (!__builtin_strncmp(name, "avx512", 6) || __builtin_cpu_supports(name))
