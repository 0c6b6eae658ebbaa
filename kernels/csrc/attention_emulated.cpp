// The VNNI path without VNNI: for tests, and never chosen automatically.
#include "dot4_emulated.inc"

#define ACCEL_ATTENTION attention_emulated
#define ACCEL_DOT4(a, q, c) dot4(a, q, c)
#include "attention_x86.inc"
