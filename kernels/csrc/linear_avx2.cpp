#define ACCEL_LINEAR linear_avx2
#include "linear_x86.inc"
