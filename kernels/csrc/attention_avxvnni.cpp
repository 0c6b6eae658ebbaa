#define ACCEL_ATTENTION attention_avxvnni
#define ACCEL_DOT4(a, q, c) _mm256_dpbusd_avx_epi32(a, q, c)
#include "attention_x86.inc"
