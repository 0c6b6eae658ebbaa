// Portable inner kernels: the same integers as the AVX2 ones, for processors without them.
#include <cmath>

#include "attention.h"
#include "rows_scalar.inc"

namespace accel {
namespace {

constexpr int64_t ROWS = 6, TILES = 1;  // size of the inner kernels

void qk_tile(int, int64_t, const uint8_t* q, int64_t q_stride, const int8_t* k, int64_t steps,
             const int32_t* init, int32_t* s, int64_t s_stride) {
  for (int64_t r = 0; r < ROWS; ++r)
    for (int64_t j = 0; j < TILE; ++j) {
      int32_t sum = init[j];
      for (int64_t g = 0; g < steps; ++g)
        for (int64_t i = 0; i < 4; ++i)
          sum += q[r * q_stride + g * 4 + i] * k[(g * TILE + j) * 4 + i];
      s[r * s_stride + j] = sum;
    }
}

void pv_tile(int, int64_t, const uint8_t* p, int64_t p_stride, const int8_t* v, int64_t steps, const float* scale,
             const float* keep, const float* gain, float* o, int64_t o_stride) {
  for (int64_t r = 0; r < ROWS; ++r)
    for (int64_t j = 0; j < TILE; ++j) {
      int32_t sum = 0;
      for (int64_t g = 0; g < steps; ++g)
        for (int64_t i = 0; i < 4; ++i)
          sum += p[r * p_stride + g * 4 + i] * v[(g * TILE + j) * 4 + i];
      float& out = o[r * o_stride + j];
      out = out * keep[r] + static_cast<float>(sum) * (gain[r] * scale[j]);
    }
}

float scale_row(const int32_t* s, const float* scale, float factor, const float* bias, int64_t n,
                float* x) {
  float top = -INFINITY;
  for (int64_t j = 0; j < (n + 31) / 32 * 32; ++j) {
    x[j] = j < n ? static_cast<float>(s[j]) * scale[j] * factor + (bias ? bias[j] : 0.0f)
                 : -INFINITY;
    if (x[j] > top) top = x[j];
  }
  return top;
}

float exp2_one(float x) { return std::exp2(x); }

float exp_row(const float* x, float shift, int64_t n, int32_t half, uint8_t* p, int32_t& high) {
  float sum = 0;
  high = 0;
  for (int64_t j = 0; j < n; ++j) {
    const float y = std::exp2(x[j] + shift);
    sum += y;
    p[j] = static_cast<uint8_t>(std::nearbyint(y == y ? y : 0.0f));
    high += p[j] >= half ? p[j] : 0;
  }
  return sum;
}

float row_top(const float* x, int64_t n) {
  float top = -INFINITY;
  for (int64_t j = 0; j < n; ++j) top = x[j] > top ? x[j] : top;
  return top;
}

int64_t find_high(const uint8_t* p, int64_t n, int32_t half, int32_t* found, int32_t& sum) {
  int64_t count = 0;
  sum = 0;
  for (int64_t j = 0; j < n; ++j) {
    sum += p[j];
    if (p[j] >= half) found[count++] = static_cast<int32_t>(j);
  }
  return count;
}

void interleave4(const int8_t* rows, int64_t stride, int8_t* out) {
  for (int64_t j = 0; j < TILE; ++j)
    for (int64_t i = 0; i < 4; ++i) out[j * 4 + i] = rows[i * stride + j];
}

}  // namespace
}  // namespace accel

#define ACCEL_ATTENTION attention_scalar
#include "attention_core.inc"
