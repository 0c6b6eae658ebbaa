// 8-bit linear layers on the CPU: y = activation(x W' + bias), with x and W held as integers.
//
// Method. A weight is packed once: each output channel (row of W) becomes integers within +-127 and one
// scale. Each row of x becomes such integers and one scale when it is used, in blocks of 96 rows that stay
// in the cache, stored unsigned with an offset of 127 (both vpmaddubsw and vpdpbusd need one unsigned
// operand). Then, with sums in 32 bits,
//
//   y = (sum_k (Xu - 127) Q) sx sw + bias + sum_o x_o w_o
//
// where -127 sum_k Q is known from packing, and the columns o of x that are kept as they are ("outliers")
// are left out of the integers.
//
// Without saturation on plain AVX2. vpmaddubsw adds pairs into 16 bits, and two of its results are added
// before they are widened: four products in all, with Xu up to 254. So the positive codes of W among any
// such four must not sum to more than 32767 / 254 = 129, and the negative ones neither. Each channel's
// scale is therefore not its largest magnitude but its largest sum of that kind, over 127; rounding adds at
// most four halves. The largest code is then about 70 instead of 127 on normal weights, 103 and 115 on
// Student's t with 5 and 3 degrees of freedom (medians over channels of 1536), and it costs nothing when
// multiplying. vpdpbusd adds in 32 bits and needs none of this.
//
// Packed layout: panels of 16 output channels, inside a panel four consecutive k of one channel are
// adjacent: [steps][16][4] bytes, as in attention.h.
#pragma once
#include <cstdint>

#include "api.h"

namespace accel {

constexpr int32_t LEVELS = 127;        // largest code
constexpr int64_t PANEL = 16;       // channels of a packed panel
constexpr int64_t LINEAR_ROWS = 96;   // rows of x per task; a multiple of every ISA's register tile
constexpr int64_t LINEAR_STEPS = 256;  // steps of four k whose part of a panel is used for all rows in turn

enum Activation : int32_t { IDENTITY = 0, GELU = 1, GELU_TANH = 2, SILU = 3 };

// Layout is part of the C ABI: kernels/cpu/linear.py declares the same fields in the same order.
struct LinearCall {
  const void* x;               // [rows, k] by x_stride; null to pack
  const void* weight;          // [n, k] by weight_stride; null to multiply
  const void* bias;            // [n] by bias_stride, in bias_dtype, or null
  void* out;                   // [rows, n] contiguous, in dtype
  const float* smooth;         // [k] or null: multiplies x; the weight is divided by it
  const int64_t* outliers;     // [outlier_count], distinct columns of x
  int8_t* codes;               // [n / 16 rounded up][steps][16][4]
  float* scale;                // [n rounded up to 16]
  int32_t* correction;         // [n rounded up to 16]: -127 * sum of the channel's codes
  float* outlier_weight;       // [outlier_count, n rounded up to 16]
  uint8_t* quantized;          // rows of x as integers, of quantized_bytes(), between the two halves of a call
  int64_t rows, k, n, outlier_count;
  int64_t x_stride[2], weight_stride[2], bias_stride;  // in elements
  int32_t dtype, weight_dtype, bias_dtype, activation, hadamard, threads;
};

// Bytes of `quantized`: codes, scale and outliers of each row of x. Rows stand an odd number of cache lines
// apart, or all of them would share one cache set.
inline int64_t row_stride(int64_t k) {
  const int64_t lines = (k + 63) / 64;
  return (lines | 1) * 64;
}
inline int64_t quantized_bytes(const LinearCall& c) {
  const int64_t rows = (c.rows + LINEAR_ROWS - 1) / LINEAR_ROWS * LINEAR_ROWS;
  return rows * (row_stride(c.k) + static_cast<int64_t>(sizeof(float)) * (1 + c.outlier_count));
}

struct LinearKernels {
  void (*pack)(const LinearCall&);
  void (*forward)(const LinearCall&);
  // The halves of forward, for layers that multiply the same rows: x to `quantized`, and that to out.
  void (*quantize)(const LinearCall&);
  void (*multiply)(const LinearCall&);
};
extern const LinearKernels linear_scalar, linear_avx2, linear_avxvnni, linear_avx512vnni, linear_emulated;

}  // namespace accel
