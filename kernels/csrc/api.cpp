// Exported functions and the run-time choice of instruction set.
#include "api.h"

#include <atomic>
#include <cstring>
#include <new>

#include "attention.h"
#include "linear.h"
#include "warp.h"

#if defined(ACCEL_X86)
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace {

#if defined(ACCEL_X86)
struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t sub) {
  Registers r;
#if defined(_MSC_VER)
  int x[4];
  __cpuid(x, 0);
  if (static_cast<uint32_t>(x[0]) < leaf) return r;
  __cpuidex(x, static_cast<int>(leaf), static_cast<int>(sub));
  r.a = x[0], r.b = x[1], r.c = x[2], r.d = x[3];
#else
  __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);
#endif
  return r;
}

// Register state that the operating system saves; 0 if it does not say.
uint64_t saved_state() {
  if (!(cpuid(1, 0).c & (1u << 27))) return 0;
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
#endif
}

bool has_avx2() {
  const bool fma = cpuid(1, 0).c & (1u << 12), f16c = cpuid(1, 0).c & (1u << 29);
  return fma && f16c && (saved_state() & 6) == 6 && (cpuid(7, 0).b & (1u << 5));
}

bool has_avxvnni() { return has_avx2() && (cpuid(7, 1).a & (1u << 4)); }

bool has_avx512vnni() {
  const uint32_t needed = 1u << 16 | 1u << 30 | 1u << 31;  // F, BW, VL
  return has_avx2() && (saved_state() & 0xe6) == 0xe6 && (cpuid(7, 0).b & needed) == needed &&
         (cpuid(7, 0).c & (1u << 11));
}
#endif

bool always() { return true; }

// Best first. `by_default` is false for instruction sets that run only when requested.
struct Isa {
  const char* name;
  bool (*present)();
  bool by_default;
  const accel::AttentionKernels& attention;
  const accel::LinearKernels& linear;
  accel::QuantizeRows quantize_rows;
  const accel::WarpKernels& warp;
};

const Isa ISAS[] = {
#if defined(ACCEL_X86)
#if defined(ACCEL_AVX512VNNI)
    {"avx512vnni", has_avx512vnni, true, accel::attention_avx512vnni, accel::linear_avx512vnni, accel::quantize_rows_avx2, accel::warp_avx2},
#endif
#if defined(ACCEL_AVXVNNI)
    {"avxvnni", has_avxvnni, true, accel::attention_avxvnni, accel::linear_avxvnni, accel::quantize_rows_avx2, accel::warp_avx2},
#endif
    {"avx2", has_avx2, true, accel::attention_avx2, accel::linear_avx2, accel::quantize_rows_avx2, accel::warp_avx2},
    {"emulated", has_avx2, false, accel::attention_emulated, accel::linear_emulated, accel::quantize_rows_avx2, accel::warp_avx2},
#endif
    {"scalar", always, true, accel::attention_scalar, accel::linear_scalar, accel::quantize_rows_scalar, accel::warp_scalar},
};

const Isa& best() {
  for (const Isa& isa : ISAS)
    if (isa.by_default && isa.present()) return isa;
  return ISAS[sizeof(ISAS) / sizeof(ISAS[0]) - 1];
}

const Isa* chosen = nullptr;
std::atomic<int64_t> alive{0};  // PackedKeys that have not been freed

const Isa& current() {
  if (!chosen) chosen = &best();
  return *chosen;
}

}  // namespace

ACCEL_EXPORT int32_t accel_abi() { return ACCEL_ABI; }

ACCEL_EXPORT const char* accel_isa() { return current().name; }

// Name of the i-th instruction set that is compiled in and runs here, null beyond the last.
ACCEL_EXPORT const char* accel_isa_name(int32_t i) {
  for (const Isa& isa : ISAS)
    if (isa.present() && i-- == 0) return isa.name;
  return nullptr;
}

// Use the named instruction set from now on (null: the default); 0 if it cannot run here.
ACCEL_EXPORT int32_t accel_choose_isa(const char* name) {
  if (!name) {
    chosen = &best();
    return 1;
  }
  for (const Isa& isa : ISAS)
    if (std::strcmp(isa.name, name) == 0 && isa.present()) {
      chosen = &isa;
      return 1;
    }
  return 0;
}

ACCEL_EXPORT void accel_quantize_rows(const float* x, int64_t rows, int64_t cols, float qmax,
                                      float floor, int8_t* codes, float* scale) {
  current().quantize_rows(x, rows, cols, qmax, floor, codes, scale);
}

ACCEL_EXPORT int64_t accel_attention_call_size() { return sizeof(accel::AttentionCall); }

// 0 done, 1 out of memory.
ACCEL_EXPORT int32_t accel_attention(const accel::AttentionCall* call) {
  try {
    current().attention.forward(*call);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// K and V of the call, packed for accel_attention_packed; null if out of memory.
ACCEL_EXPORT void* accel_attention_pack(const accel::AttentionCall* call) {
  try {
    accel::PackedKeys* packed = current().attention.pack(*call).release();
    ++alive;
    return packed;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// accel_attention with K and V that accel_attention_pack packed, from a call that differs at most in its
// queries, masks that hide the same keys from all of them, and results. 0 done, 1 out of memory.
ACCEL_EXPORT int32_t accel_attention_packed(const accel::AttentionCall* call, const void* packed) {
  try {
    static_cast<const accel::PackedKeys*>(packed)->attend(*call);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

ACCEL_EXPORT void accel_attention_free(void* packed) {
  delete static_cast<accel::PackedKeys*>(packed);
  --alive;
}

// The number of packed K and V that have not been freed.
ACCEL_EXPORT int64_t accel_attention_alive() { return alive; }

// Most bytes of memory that the call needs besides its inputs and its result; with `all`, if K and V of
// all heads are packed for several calls.
ACCEL_EXPORT int64_t accel_attention_scratch(const accel::AttentionCall* call, int32_t all) {
  return accel::attention_scratch(*call, all != 0);
}

ACCEL_EXPORT int64_t accel_linear_call_size() { return sizeof(accel::LinearCall); }

// Writes codes, scale, correction and outlier_weight from weight; 0 done, 1 out of memory.
ACCEL_EXPORT int32_t accel_linear_pack(const accel::LinearCall* call) {
  try {
    current().linear.pack(*call);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Bytes of the call's `quantized`.
ACCEL_EXPORT int64_t accel_linear_quantized_bytes(const accel::LinearCall* call) {
  return accel::quantized_bytes(*call);
}

// Writes quantized from x; 0 done, 1 out of memory.
ACCEL_EXPORT int32_t accel_linear_quantize(const accel::LinearCall* call) {
  try {
    current().linear.quantize(*call);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Writes out from quantized and a weight, both of the same instruction set; 0 done, 1 out of memory.
ACCEL_EXPORT int32_t accel_linear_multiply(const accel::LinearCall* call) {
  try {
    current().linear.multiply(*call);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Writes out from x and a weight that the same instruction set packed; 0 done, 1 out of memory.
ACCEL_EXPORT int32_t accel_linear(const accel::LinearCall* call) {
  try {
    current().linear.forward(*call);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

ACCEL_EXPORT int64_t accel_warp_call_size() { return sizeof(accel::WarpCall); }

// 0 done, 1 out of memory.
ACCEL_EXPORT int32_t accel_warp_step(const accel::WarpCall* call) {
  try {
    accel::warp_step(*call, current().warp);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// Fresh noise [channels, pixels] of a frame; 0 done, 1 out of memory.
ACCEL_EXPORT int32_t accel_warp_fresh(float* out, int64_t channels, int64_t pixels, uint64_t seed,
                                      uint32_t frame, int32_t threads) {
  try {
    accel::warp_fresh(out, channels, pixels, seed, frame, threads, current().warp);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
