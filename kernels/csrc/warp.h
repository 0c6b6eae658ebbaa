// Noise carried along a flow, one frame per call. It matches the specification, kernels/reference_warp.py,
// bit for bit: one rounding per operation (no contraction to FMA), sums in the order of the edges, random
// numbers looked up by pixel, frame, stream and channel. So the result does not depend on the number of
// threads, the instruction set, or how channels are grouped.
#pragma once
#include <cstdint>

namespace accel {

// Everything about one frame. Planes are contiguous, pixels in row order.
struct WarpCall {
  const float* noise;     // [channels, pixels], the earlier frame
  const float* density;   // [pixels]
  const float* forward;   // [2, pixels], dx plane, then dy plane
  const float* backward;  // [2, pixels], or null: inverted here
  float* noise_out;       // [channels, pixels], the later frame
  float* density_out;     // [pixels]
  int64_t channels, height, width;
  uint64_t seed;
  uint32_t frame;
  int32_t threads;
  float offset[2];  // rounding offset (x, y) of the frame
};

// Normals of `count` pixels for the channels 4 group .. 4 group + 3: out[c * stride + i]. streams[i] is
// the stream of pixel i's number; only the first `channels` rows are written.
using Normals = void (*)(const int32_t* pixels, const uint8_t* streams, int64_t count, uint64_t seed,
                         uint32_t frame, uint32_t group, int64_t channels, float* out, int64_t stride);

// there[x]: pixel index where the forward flow takes pixel x of a row, -1 outside of the frame.
using TargetsOfRow = void (*)(const WarpCall& call, int64_t row, int32_t* there);

// origin[x]: pixel index that the backward flow names for pixel x of a row if no forward edge arrives
// there (arrivals[x] is 0), else -1; also -1 outside of the frame.
using OriginsInRow = void (*)(const WarpCall& call, int64_t row, const int32_t* arrivals, int32_t* origin);

// One definition per instruction set.
struct WarpKernels {
  Normals normals;
  TargetsOfRow targets_of_row;
  OriginsInRow origins_in_row;
};

extern const WarpKernels warp_scalar, warp_avx2;

void warp_step(const WarpCall& call, const WarpKernels& kernels);
void warp_fresh(float* out, int64_t channels, int64_t pixels, uint64_t seed, uint32_t frame, int threads,
                const WarpKernels& kernels);

}  // namespace accel
