// Exported functions and the run-time choice of instruction set.
#include "api.h"

#include <new>

#include "attention.h"

#if defined(ACCEL_X86) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace {

bool has_avx2() {
#if !defined(ACCEL_X86)
  return false;
#elif defined(_MSC_VER)
  int r[4];
  __cpuid(r, 0);
  if (r[0] < 7) return false;
  __cpuid(r, 1);
  const bool fma = r[2] & (1 << 12), osxsave = r[2] & (1 << 27);
  if (!fma || !osxsave || (_xgetbv(0) & 6) != 6) return false;
  __cpuidex(r, 7, 0);
  return r[1] & (1 << 5);
#else
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
}

}  // namespace

ACCEL_EXPORT int32_t accel_abi() { return ACCEL_ABI; }

ACCEL_EXPORT const char* accel_isa() { return has_avx2() ? "avx2" : "scalar"; }

ACCEL_EXPORT void accel_quantize_rows(const float* x, int64_t rows, int64_t cols, float qmax,
                                      float floor, int8_t* codes, float* scale) {
#if defined(ACCEL_X86)
  static const accel::QuantizeRows chosen =
      has_avx2() ? accel::quantize_rows_avx2 : accel::quantize_rows_scalar;
#else
  static const accel::QuantizeRows chosen = accel::quantize_rows_scalar;
#endif
  chosen(x, rows, cols, qmax, floor, codes, scale);
}

ACCEL_EXPORT int64_t accel_attention_call_size() { return sizeof(accel::AttentionCall); }

// 0 done, 1 out of memory.
ACCEL_EXPORT int32_t accel_attention(const accel::AttentionCall* call) {
#if defined(ACCEL_X86)
  static const accel::AttentionForward chosen =
      has_avx2() ? accel::attention_avx2 : accel::attention_scalar;
#else
  static const accel::AttentionForward chosen = accel::attention_scalar;
#endif
  try {
    chosen(*call);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// The portable path, whatever the processor: for tests of one against the other.
ACCEL_EXPORT int32_t accel_attention_scalar(const accel::AttentionCall* call) {
  try {
    accel::attention_scalar(*call);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
