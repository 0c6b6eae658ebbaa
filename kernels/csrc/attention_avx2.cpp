#define ACCEL_ATTENTION attention_avx2
#include "attention_x86.inc"
