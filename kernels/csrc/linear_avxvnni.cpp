#define ACCEL_LINEAR linear_avxvnni
#define ACCEL_DOT4(a, q, c) _mm256_dpbusd_avx_epi32(a, q, c)
#include "linear_x86.inc"
