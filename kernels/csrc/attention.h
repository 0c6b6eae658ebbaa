// Quantized attention on the CPU: the call's description, shared by the driver and every ISA.
//
// Method. For each (batch, key head) K and V are quantized once into packed 8-bit tiles; then each
// task takes 96 query rows, quantizes them, and runs over blocks of 128 keys:
//
//   S = (Qu Kt - offset sum(K)) sq sk        Qu = Q + offset is unsigned, as vpmaddubsw needs it
//   P = round(L 2^(S - m))                   m: the row's maximum inside this key block
//   O = O 2^(M - M') + (P V) sv 2^(m - M')   M': new running maximum; the sum likewise, unrounded
//
// Keys that dominate a row are multiplied with V in fp32 where rounding would lose the others: see
// attention_sinks.inc.
//
// Packed layout of both products: tiles of 16 columns (keys for QK, channels for PV), inside a tile
// four consecutive contraction indices of one column are adjacent:  [steps][16][4] bytes. One step of
// the inner kernel broadcasts four bytes of a row and multiplies them with 2 x 8 columns.
//
// Bits (with the sign) and how many steps accumulate in 16 bits before they could overflow:
//
//             Q  K   steps   P levels  V   steps
//   int8      7  8     1       127     7     2
//   int6      6  6     8       127     7     2
//   int4      4  4    all       63     7     4
//
// V has a scale per key block and channel. Six-bit P adds no cost to int4 beyond its logits.
#pragma once
#include <cstdint>
#include <memory>

#include "api.h"

namespace accel {

constexpr int64_t KEY_BLOCK = 128;   // keys per block; K and V of one block stay in the L1/L2 cache
constexpr int64_t QUERY_BLOCK = 96;  // query rows per task
constexpr int64_t TILE = 16;         // columns per packed tile
constexpr int64_t CHUNK = 24;        // rows that share a packed tile while it is in the L1 cache; a
                                     // multiple of every ROWS (rows of an ISA's register tile)

enum MaskKind : int32_t { NO_MASK = 0, BOOL_MASK = 1, ADDITIVE_MASK = 2 };

// Layout is part of the C ABI: kernels/cpu/attention.py declares the same fields in the same order.
struct AttentionCall {
  const void *q, *k, *v;
  void* out;                       // [B, H, Tq, Dv], same dtype, rows by out_stride, dense channels
  float* lse;                      // [B, H, Tq] or null; natural log
  const void* mask;                // uint8 (bool) or additive in mask_dtype, see mask_stride
  const int64_t* key_lengths;      // [B] or null
  const uint8_t* key_valid;        // [B, Tk] contiguous or null; 0: no query sees this key
  const uint8_t* block_mask;       // [B, H, query blocks, key blocks] contiguous or null; 0: left out
  int64_t batch, heads, key_heads, queries, keys, dim, value_dim;
  int64_t q_stride[4], k_stride[4], v_stride[4], mask_stride[4];  // in elements
  int64_t out_stride[3];
  int32_t dtype, qk_bits, mask_kind, mask_dtype, causal;
  int32_t smooth_k, smooth_q, smooth_v, hadamard;
  float scale;
  int32_t threads;
};

// K and V of all (batch, key head) pairs of a call, for other calls with the same K, V and options on them.
struct PackedKeys {
  virtual ~PackedKeys() = default;
  // Runs on the instruction set that packed; reads k only to smooth queries, and of v keys that dominate a row.
  virtual void attend(const AttentionCall&) const = 0;
};

struct AttentionKernels {
  void (*forward)(const AttentionCall&);  // packs a few pairs at a time and keeps none of them
  std::unique_ptr<PackedKeys> (*pack)(const AttentionCall&);
};
extern const AttentionKernels attention_scalar, attention_avx2, attention_avxvnni,
    attention_avx512vnni, attention_emulated;

// How the work is divided: (batch, key head) pairs whose packed K and V are held at a time, and the bytes
// of one pair and of one running task.
struct Footprint {
  int64_t pairs, pair_bytes, task_bytes;
};
Footprint footprint(const AttentionCall&);

// `all`: every pair is packed at once, for several calls.
inline int64_t attention_scratch(const AttentionCall& call, bool all) {
  const Footprint f = footprint(call);
  const int64_t pairs = all ? call.batch * call.key_heads : f.pairs;
  return pairs * f.pair_bytes + call.threads * f.task_bytes;
}

}  // namespace accel
