#define ACCEL_NAME warp_avx2
#include "warp_isa.inc"
