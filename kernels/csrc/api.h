// Plain C ABI of the native library; loaded by kernels/cpu/native.py with ctypes.
// Pointers are to contiguous memory, sizes are 64-bit element counts.
#pragma once
#include <cstdint>

#if defined(_WIN32)
#define ACCEL_EXPORT extern "C" __declspec(dllexport)
#else
#define ACCEL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Number of this interface; native.py refuses a library with another one.
#define ACCEL_ABI 10

namespace accel {

enum Dtype : int32_t { F32 = 0, BF16 = 1, F16 = 2 };

// Rows of x [rows, cols] to signed integers in [-qmax, qmax]: scale[r] = max(|x[r]|, floor) / qmax and
// codes = round-half-to-even(x / scale). One definition per instruction set.
using QuantizeRows = void (*)(const float* x, int64_t rows, int64_t cols, float qmax, float floor,
                              int8_t* codes, float* scale);
void quantize_rows_scalar(const float*, int64_t, int64_t, float, float, int8_t*, float*);
void quantize_rows_avx2(const float*, int64_t, int64_t, float, float, int8_t*, float*);

// Calls body(i) for i in [0, count) from `threads` threads, in any order; returns when all are done. Throws
// std::bad_alloc, and leaves out what has not begun, if a body does.
void parallel_for(int64_t count, int threads, void (*body)(void*, int64_t), void* context);

}  // namespace accel
