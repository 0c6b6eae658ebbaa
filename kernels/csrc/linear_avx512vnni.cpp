#define ACCEL_LINEAR linear_avx512vnni
#define ACCEL_512 1
#include "linear_x86.inc"
