// AVX2 inner kernels. vpmaddubsw multiplies unsigned rows with signed columns and adds pairs into 16
// bits; see attention.h for why that never saturates.
#include <immintrin.h>

#include <cmath>

#include "attention.h"

// GCC otherwise moves accumulators to the stack around the loop, which costs a factor of four.
#if defined(__GNUC__)
#define KEEP(x) asm volatile("" : "+x"(x))
#else
#define KEEP(x)
#endif

namespace accel {
namespace {

inline __m256i broadcast4(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// The six rows of a register tile, spelt out: GCC keeps an array of accumulators in memory.
#define EACH_ROW(M) M(0) M(1) M(2) M(3) M(4) M(5)
#define DECLARE(r) __m256i a##r, b##r;
#define CLEAR(r) a##r = b##r = _mm256_setzero_si256();

inline __m256i load(const void* p) {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}

inline __m256i loadu(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

inline void storeu(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

// s[r][0..15] = init[0..15] + sum over steps of rows[r] * columns, r < 6. WIDEN: steps whose sum fits
// into 16 bits.
template <int WIDEN>
inline void dot_tile(const uint8_t* rows, int64_t row_stride, const int8_t* columns, int64_t steps,
                     const int32_t* init, int32_t* s, int64_t s_stride) {
  const __m256i ones = _mm256_set1_epi16(1);
  EACH_ROW(DECLARE)
  for (int64_t first = 0; first < steps; first += WIDEN) {
    const int64_t last = first + WIDEN < steps ? first + WIDEN : steps;
    EACH_ROW(CLEAR)
    for (int64_t g = first; g < last; ++g) {
      const __m256i c0 = load(columns + g * 64), c1 = load(columns + g * 64 + 32);
#define MULTIPLY(r)                                                  \
  {                                                                  \
    const __m256i q = broadcast4(rows + r * row_stride + g * 4);     \
    a##r = _mm256_add_epi16(a##r, _mm256_maddubs_epi16(q, c0));      \
    b##r = _mm256_add_epi16(b##r, _mm256_maddubs_epi16(q, c1));      \
    KEEP(a##r);                                                      \
    KEEP(b##r);                                                      \
  }
      EACH_ROW(MULTIPLY)
#undef MULTIPLY
    }
    const int32_t* before = init;
    int64_t stride = 0;
    if (first) before = s, stride = s_stride;
#define WIDEN_ROW(r)                                                                       \
  {                                                                                        \
    const __m256i x = loadu(before + r * stride), y = loadu(before + r * stride + 8);      \
    storeu(s + r * s_stride, _mm256_add_epi32(x, _mm256_madd_epi16(a##r, ones)));          \
    storeu(s + r * s_stride + 8, _mm256_add_epi32(y, _mm256_madd_epi16(b##r, ones)));      \
  }
    EACH_ROW(WIDEN_ROW)
#undef WIDEN_ROW
  }
}

// The same where one product already fills 16 bits: 32-bit accumulators stay in registers.
inline void dot_tile_wide(const uint8_t* rows, int64_t row_stride, const int8_t* columns,
                          int64_t steps, const int32_t* init, int32_t* s, int64_t s_stride) {
  const __m256i ones = _mm256_set1_epi16(1);
  EACH_ROW(DECLARE)
#define START(r) a##r = loadu(init), b##r = loadu(init + 8);
  EACH_ROW(START)
#undef START
  for (int64_t g = 0; g < steps; ++g) {
    const __m256i c0 = load(columns + g * 64), c1 = load(columns + g * 64 + 32);
#define MULTIPLY(r)                                                                          \
  {                                                                                          \
    const __m256i q = broadcast4(rows + r * row_stride + g * 4);                             \
    a##r = _mm256_add_epi32(a##r, _mm256_madd_epi16(_mm256_maddubs_epi16(q, c0), ones));     \
    b##r = _mm256_add_epi32(b##r, _mm256_madd_epi16(_mm256_maddubs_epi16(q, c1), ones));     \
    KEEP(a##r);                                                                              \
    KEEP(b##r);                                                                              \
  }
    EACH_ROW(MULTIPLY)
#undef MULTIPLY
  }
#define STORE(r) storeu(s + r * s_stride, a##r), storeu(s + r * s_stride + 8, b##r);
  EACH_ROW(STORE)
#undef STORE
}

inline void qk_tile(int bits, const uint8_t* q, int64_t q_stride, const int8_t* k, int64_t steps,
                    const int32_t* init, int32_t* s, int64_t s_stride) {
  if (bits == 4) return dot_tile<64>(q, q_stride, k, steps, init, s, s_stride);
  if (bits == 6) return dot_tile<8>(q, q_stride, k, steps, init, s, s_stride);
  dot_tile_wide(q, q_stride, k, steps, init, s, s_stride);
}

// o[r][0..15] = o[r] * keep[r] + (P V) * gain[r] * scale; GROUP steps per widening, steps is a
// multiple of 8.
template <int GROUP>
inline void pv_tile_grouped(const uint8_t* p, int64_t p_stride, const int8_t* v, int64_t steps,
                            const float* scale, const float* keep, const float* gain, float* o,
                            int64_t o_stride) {
  const __m256i ones = _mm256_set1_epi16(1);
  EACH_ROW(DECLARE)
  EACH_ROW(CLEAR)
  for (int64_t g = 0; g < steps; g += GROUP) {
    const int8_t* c = v + g * 64;
#define PRODUCT(r, i, half) \
  _mm256_maddubs_epi16(broadcast4(p + r * p_stride + (g + i) * 4), load(c + i * 64 + half))
#define MULTIPLY(r)                                                                         \
  {                                                                                         \
    __m256i x = _mm256_add_epi16(PRODUCT(r, 0, 0), PRODUCT(r, 1, 0));                       \
    __m256i y = _mm256_add_epi16(PRODUCT(r, 0, 32), PRODUCT(r, 1, 32));                     \
    if (GROUP == 4) {                                                                       \
      x = _mm256_add_epi16(x, _mm256_add_epi16(PRODUCT(r, 2, 0), PRODUCT(r, 3, 0)));        \
      y = _mm256_add_epi16(y, _mm256_add_epi16(PRODUCT(r, 2, 32), PRODUCT(r, 3, 32)));      \
    }                                                                                       \
    a##r = _mm256_add_epi32(a##r, _mm256_madd_epi16(x, ones));                              \
    b##r = _mm256_add_epi32(b##r, _mm256_madd_epi16(y, ones));                              \
    KEEP(a##r);                                                                             \
    KEEP(b##r);                                                                             \
  }
    EACH_ROW(MULTIPLY)
#undef MULTIPLY
#undef PRODUCT
  }
  const __m256 s0 = _mm256_loadu_ps(scale), s1 = _mm256_loadu_ps(scale + 8);
#define STORE(r)                                                                            \
  {                                                                                         \
    float* out = o + r * o_stride;                                                          \
    const __m256 k = _mm256_set1_ps(keep[r]), f = _mm256_set1_ps(gain[r]);                  \
    const __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(a##r), _mm256_mul_ps(f, s0));         \
    const __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(b##r), _mm256_mul_ps(f, s1));         \
    _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_loadu_ps(out), k, x));                     \
    _mm256_storeu_ps(out + 8, _mm256_fmadd_ps(_mm256_loadu_ps(out + 8), k, y));             \
  }
  EACH_ROW(STORE)
#undef STORE
}

inline void pv_tile(int bits, const uint8_t* p, int64_t p_stride, const int8_t* v, int64_t steps,
                    const float* scale, const float* keep, const float* gain, float* o,
                    int64_t o_stride) {
  if (bits == 4) return pv_tile_grouped<4>(p, p_stride, v, steps, scale, keep, gain, o, o_stride);
  pv_tile_grouped<2>(p, p_stride, v, steps, scale, keep, gain, o, o_stride);
}

// 2^x for x <= 7, relative error below 3e-6 (minimax on [-1/2, 1/2]); NaN stays NaN.
inline __m256 exp2_vector(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-126.99f), x);  // the second operand is what a NaN gives
  const __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 f = _mm256_sub_ps(x, whole);
  __m256 p = _mm256_set1_ps(0.0095700971f);
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.0559178633f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.2402474498f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.6931218144f));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.9999992614f));
  const __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e));
}

inline float reduce_max(__m256 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

inline float reduce_sum(__m256 x) {
  __m128 m = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_add_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_add_ss(m, _mm_movehdup_ps(m)));
}

// x[j] = s[j] * scale[j] * factor (+ bias[j]) for j < n, -inf up to the next multiple of 32; returns
// the maximum.
inline float scale_row(const int32_t* s, const float* scale, float factor, const float* bias,
                       int64_t n, float* x) {
  const __m256 f = _mm256_set1_ps(factor), low = _mm256_set1_ps(-INFINITY);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 top = low;
  for (int64_t j = 0; j < (n + 31) / 32 * 32; j += 8) {
    __m256 y = _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(s + j)));
    y = _mm256_mul_ps(_mm256_mul_ps(y, _mm256_loadu_ps(scale + j)), f);
    if (bias) y = _mm256_add_ps(y, _mm256_loadu_ps(bias + j));
    if (j + 8 > n) {
      const __m256i left = _mm256_set1_epi32(static_cast<int>(n > j ? n - j : 0));
      y = _mm256_blendv_ps(low, y, _mm256_castsi256_ps(_mm256_cmpgt_epi32(left, lane)));
    }
    _mm256_storeu_ps(x + j, y);
    top = _mm256_max_ps(y, top);
  }
  return reduce_max(top);
}

// p[j] = round(2^(x[j] + shift)) for j < n; returns the sum of the unrounded values.
inline float exp_row(const float* x, float to_add, int64_t n, uint8_t* p) {
  const __m256 shift = _mm256_set1_ps(to_add);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256 sum = _mm256_setzero_ps();
  for (int64_t j = 0; j < n; j += 32) {
    __m256i w[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 y = _mm256_add_ps(_mm256_loadu_ps(x + j + 8 * i), shift);
      const __m256 e = exp2_vector(y);
      sum = _mm256_add_ps(sum, e);
      w[i] = _mm256_cvtps_epi32(e);
    }
    const __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(w[0], w[1]),
                                               _mm256_packs_epi32(w[2], w[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + j),
                        _mm256_permutevar8x32_epi32(packed, order));
  }
  return reduce_sum(sum);
}

// Largest |x[j]|, j < n, n a multiple of 8; NaN if any element is not finite.
inline float row_peak(const float* x, int64_t n) {
  const __m256 positive = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 top = _mm256_setzero_ps(), bad = _mm256_setzero_ps();
  for (int64_t j = 0; j < n; j += 8) {
    const __m256 y = _mm256_loadu_ps(x + j);
    top = _mm256_max_ps(top, _mm256_and_ps(y, positive));
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(_mm256_sub_ps(y, y), _mm256_setzero_ps(), _CMP_NEQ_UQ));
  }
  return _mm256_movemask_ps(bad) ? NAN : reduce_max(top);
}

// codes[j] = round(x[j] * inverse[j]) within +-limit for j < n, n a multiple of 32, with inverse[0] for
// all if `one`; returns the sum of the codes.
template <bool one>
inline int32_t quantise_row(const float* x, const float* inverse, float limit, int64_t n,
                            int8_t* codes) {
  const __m256 high = _mm256_set1_ps(limit), low = _mm256_set1_ps(-limit);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256 all = _mm256_set1_ps(inverse[0]);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t j = 0; j < n; j += 32) {
    __m256i w[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 f = one ? all : _mm256_loadu_ps(inverse + j + 8 * i);
      const __m256 y = _mm256_mul_ps(_mm256_loadu_ps(x + j + 8 * i), f);
      w[i] = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(y, high), low));
      sum = _mm256_add_epi32(sum, w[i]);
    }
    const __m256i packed =
        _mm256_packs_epi16(_mm256_packs_epi32(w[0], w[1]), _mm256_packs_epi32(w[2], w[3]));
    storeu(codes + j, _mm256_permutevar8x32_epi32(packed, order));
  }
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_hadd_epi32(half, half);
  return _mm_cvtsi128_si32(_mm_hadd_epi32(half, half));
}

// out[j][i] = rows[i][j], i < 4, j < 16: four keys of a channel come to lie together.
inline void interleave4(const int8_t* rows, int64_t stride, int8_t* out) {
  __m128i r[4];
  for (int i = 0; i < 4; ++i)
    r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * stride));
  const __m128i a = _mm_unpacklo_epi8(r[0], r[1]), b = _mm_unpacklo_epi8(r[2], r[3]);
  const __m128i c = _mm_unpackhi_epi8(r[0], r[1]), d = _mm_unpackhi_epi8(r[2], r[3]);
  auto* to = reinterpret_cast<__m128i*>(out);
  _mm_storeu_si128(to, _mm_unpacklo_epi16(a, b));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(a, b));
  _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(c, d));
  _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(c, d));
}

}  // namespace
}  // namespace accel

#define ACCEL_ATTENTION attention_avx2
#include "attention_core.inc"
