#define ACCEL_NAME quantize_rows_avx2
#include "quantize_isa.inc"
