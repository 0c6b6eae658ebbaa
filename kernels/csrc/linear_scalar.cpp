// Portable inner kernels of linear layers, for processors without AVX2.
#include <cmath>

#include "linear.h"
#include "rows_scalar.inc"

namespace accel {
namespace {

constexpr bool GROUPED = false;
constexpr int64_t ROWS = 6, TILES = 1;

void dot_tile(int64_t, const uint8_t* rows, int64_t row_stride, const int8_t* columns, int64_t, int64_t steps,
              const int32_t* init, int64_t init_stride, int32_t* s) {
  for (int64_t r = 0; r < ROWS; ++r)
    for (int64_t j = 0; j < PANEL; ++j) {
      int32_t sum = init[r * init_stride + j];
      for (int64_t g = 0; g < steps; ++g)
        for (int64_t i = 0; i < 4; ++i) sum += rows[r * row_stride + g * 4 + i] * columns[(g * PANEL + j) * 4 + i];
      s[r * PANEL + j] = sum;
    }
}

}  // namespace
}  // namespace accel

#define ACCEL_LINEAR linear_scalar
#include "linear_core.inc"
