// The VNNI path with its instruction emulated in AVX2, so that its tiles can be tested on processors
// without it. It is slow and never chosen automatically.
#include <immintrin.h>

static inline __m256i dot4(__m256i a, __m256i q, __m256i c) {
  const __m256i low = _mm256_set1_epi16(0x00ff);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(q, low),
                                         _mm256_srai_epi16(_mm256_slli_epi16(c, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(q, 8), _mm256_srai_epi16(c, 8));
  return _mm256_add_epi32(a, _mm256_add_epi32(even, odd));
}

#define ACCEL_ATTENTION attention_emulated
#define ACCEL_DOT4(a, q, c) dot4(a, q, c)
#include "attention_x86.inc"
