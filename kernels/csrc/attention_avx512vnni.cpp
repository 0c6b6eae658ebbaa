#define ACCEL_ATTENTION attention_avx512vnni
#define ACCEL_512 1
#include "attention_x86.inc"
