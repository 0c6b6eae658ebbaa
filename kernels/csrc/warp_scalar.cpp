#define ACCEL_NAME warp_scalar
#include "warp_isa.inc"
