#define ACCEL_NAME quantize_rows_scalar
#include "quantize_isa.inc"
