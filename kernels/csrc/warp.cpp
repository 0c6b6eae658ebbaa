// One frame of the warp: the graph of edges (made once for all channels), then the noise.
#include "warp.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "api.h"
#include "pages.h"

namespace accel {
namespace {

enum Stream : uint8_t { FRESH = 0, FORWARD = 1, BACKWARD = 2 };
constexpr float MIN_DENSITY = 1e-6f, MAX_DENSITY = 1e6f;
constexpr int64_t CHUNK = 1 << 14;  // elements per task

template <class T>
using Array = std::vector<T, LargePages<T>>;
using Indices = Array<int32_t>;

// One number `via` encodes what a target receives. Below N: that pixel's noise, unchanged. From N on:
// slot via - N (first the edges of sources with several edges, grouped by source, then the holes). After
// the slots: via - N - slots is the number of a merge.
struct Graph {
  int64_t pixels;
  Indices via;                 // [N] per target
  Indices slot_pixel;          // [slots] pixel of a slot's normal
  Array<uint8_t> slot_stream;  // [slots] random stream of a slot's normal
  Indices source, first_slot;  // sources with several edges; their slots first_slot[i] .. first_slot[i + 1]
  Indices merge_start;         // merges; their edges merge_start[i] .. merge_start[i + 1]
  Indices merge_via;           // [edges of merges]
  Array<float> merge_weight, merge_norm;
  int64_t slots() const { return static_cast<int64_t>(slot_pixel.size()); }
};

template <class Body>
void run(int64_t count, int threads, const Body& body) {
  parallel_for(
      count, threads, [](void* context, int64_t i) { (*static_cast<const Body*>(context))(i); },
      const_cast<Body*>(&body));
}

// Target of every source (-1: leaves the frame), then source of every target that no edge reached.
void find_edges(const WarpCall& call, const WarpKernels& kernels, Indices& there, Indices& origin,
                Indices& arrivals) {
  const int64_t width = call.width;
  run(call.height, call.threads, [&](int64_t y) { kernels.targets_of_row(call, y, &there[y * width]); });
  for (const int32_t target : there)
    if (target >= 0) ++arrivals[target];
  run(call.height, call.threads, [&](int64_t y) {
    kernels.origins_in_row(call, y, &arrivals[y * width], &origin[y * width]);
  });
}

// Numbers the slots: for each source with several edges its forward edge, then its backward edges by
// target. Then `there_via` and `origin_via` say what an edge carries.
void number_slots(Graph& g, const Indices& there, const Indices& origin, const Indices& degree,
                  Indices& there_via, Indices& origin_via) {
  Indices cursor(g.pixels);
  int32_t slots = 0;
  for (int32_t s = 0; s < g.pixels; ++s) {
    if (degree[s] < 2) continue;
    g.source.push_back(s);
    g.first_slot.push_back(slots);
    cursor[s] = slots;
    slots += degree[s];
  }
  g.first_slot.push_back(slots);
  g.slot_pixel.resize(slots);
  g.slot_stream.resize(slots);
  const auto place = [&](int32_t source, int32_t pixel, Stream stream) -> int32_t {
    if (degree[source] < 2) return source;
    const int32_t slot = cursor[source]++;
    g.slot_pixel[slot] = pixel;
    g.slot_stream[slot] = stream;
    return static_cast<int32_t>(g.pixels) + slot;
  };
  for (int32_t s = 0; s < g.pixels; ++s)
    if (there[s] >= 0) there_via[s] = place(s, s, FORWARD);
  for (int32_t t = 0; t < g.pixels; ++t)
    if (origin[t] >= 0) origin_via[t] = place(origin[t], t, BACKWARD);
}

// Finds what every target receives, and the later frame's density.
Graph make_graph(const WarpCall& call, const WarpKernels& kernels) {
  Graph g;
  g.pixels = call.height * call.width;
  const size_t n = static_cast<size_t>(g.pixels);
  Indices there(n), origin(n), arrivals(n), degree(n), there_via(n), origin_via(n);
  find_edges(call, kernels, there, origin, arrivals);
  for (size_t i = 0; i < n; ++i) degree[i] += there[i] >= 0;
  for (size_t i = 0; i < n; ++i)
    if (origin[i] >= 0) ++degree[origin[i]];
  number_slots(g, there, origin, degree, there_via, origin_via);

  const auto share = [&](int32_t source) { return call.density[source] / static_cast<float>(degree[source]); };
  const auto clipped = [](float rho) { return std::min(std::max(rho, MIN_DENSITY), MAX_DENSITY); };
  g.via.resize(n);
  Indices merge_of(n);
  int32_t merges = 0, merged_edges = 0;
  for (int32_t t = 0; t < g.pixels; ++t) {
    if (arrivals[t] > 1) {
      merge_of[t] = merges++;
      g.merge_start.push_back(merged_edges);
      merged_edges += arrivals[t];
    } else if (arrivals[t] == 0 && origin[t] >= 0) {
      g.via[t] = origin_via[t];
      call.density_out[t] = clipped(share(origin[t]));
    } else if (arrivals[t] == 0) {
      g.via[t] = static_cast<int32_t>(g.pixels) + static_cast<int32_t>(g.slots());
      g.slot_pixel.push_back(t);
      g.slot_stream.push_back(FRESH);
      call.density_out[t] = 1.0f;
    }
  }
  g.merge_start.push_back(merged_edges);
  g.merge_via.resize(merged_edges);
  g.merge_weight.resize(merged_edges);
  g.merge_norm.assign(merges, 0.0f);
  Indices cursor(g.merge_start);
  for (int32_t s = 0; s < g.pixels; ++s) {
    const int32_t t = there[s];
    if (t < 0) continue;
    const float r = share(s);
    if (arrivals[t] == 1) {
      g.via[t] = there_via[s];
      call.density_out[t] = clipped(r);
      continue;
    }
    const int32_t m = merge_of[t], edge = cursor[m]++;
    g.merge_via[edge] = there_via[s];
    g.merge_weight[edge] = std::sqrt(r);
    g.merge_norm[m] += r;
    if (edge + 1 < g.merge_start[m + 1]) continue;
    g.via[t] = static_cast<int32_t>(g.pixels + g.slots()) + m;
    call.density_out[t] = clipped(g.merge_norm[m]);
    g.merge_norm[m] = std::sqrt(std::max(g.merge_norm[m], MIN_DENSITY));
  }
  return g;
}

// Calls body(channel, begin, end) over blocks of [0, count) of every channel.
template <class Body>
void over_planes(int64_t channels, int64_t count, int threads, const Body& body) {
  const int64_t blocks = (count + CHUNK - 1) / CHUNK;
  run(channels * blocks, threads, [&](int64_t task) {
    const int64_t begin = task % blocks * CHUNK;
    body(task / blocks, begin, std::min(count, begin + CHUNK));
  });
}

// Draws the slots' normals into extra [channels, slots].
void draw(const WarpCall& call, const Graph& g, const WarpKernels& kernels, float* extra) {
  over_planes((call.channels + 3) / 4, g.slots(), call.threads, [&](int64_t group, int64_t begin, int64_t end) {
    kernels.normals(&g.slot_pixel[begin], &g.slot_stream[begin], end - begin, call.seed, call.frame,
                    static_cast<uint32_t>(group), std::min<int64_t>(4, call.channels - 4 * group),
                    extra + 4 * group * g.slots() + begin, g.slots());
  });
}

// Splits the sources with several edges: y = q / sqrt(d) + (z - mean z), in place of z.
void split(const WarpCall& call, const Graph& g, float* extra) {
  const auto sources = static_cast<int64_t>(g.source.size());
  over_planes(call.channels, sources, call.threads, [&](int64_t channel, int64_t begin, int64_t end) {
    const float* q = call.noise + channel * g.pixels;
    float* z = extra + channel * g.slots();
    for (int64_t i = begin; i < end; ++i) {
      const int32_t from = g.first_slot[i], to = g.first_slot[i + 1];
      const float count = static_cast<float>(to - from), own = q[g.source[i]] / std::sqrt(count);
      float total = 0;
      for (int32_t k = from; k < to; ++k) total += z[k];
      const float mean = total / count;
      for (int32_t k = from; k < to; ++k) z[k] = own + (z[k] - mean);
    }
  });
}

// Copies or merges what every target receives.
void gather(const WarpCall& call, const Graph& g, const float* extra) {
  over_planes(call.channels, g.pixels, call.threads, [&](int64_t channel, int64_t begin, int64_t end) {
    const float *q = call.noise + channel * g.pixels, *slot = extra + channel * g.slots();
    const auto value = [&](int32_t via) { return via < g.pixels ? q[via] : slot[via - g.pixels]; };
    float* out = call.noise_out + channel * g.pixels;
    const int64_t first_merge = g.pixels + g.slots();
    for (int64_t t = begin; t < end; ++t) {
      const int32_t via = g.via[t];
      if (via < first_merge) {
        out[t] = value(via);
        continue;
      }
      const int64_t m = via - first_merge;
      float sum = 0;
      for (int32_t e = g.merge_start[m]; e < g.merge_start[m + 1]; ++e)
        sum += g.merge_weight[e] * value(g.merge_via[e]);
      out[t] = sum / g.merge_norm[m];
    }
  });
}

}  // namespace

void warp_step(const WarpCall& call, const WarpKernels& kernels) {
  const Graph g = make_graph(call, kernels);
  prefer_large_pages(call.noise_out, sizeof(float) * call.channels * g.pixels);
  const auto release = [](float* memory) { LargePages<float>().deallocate(memory, 0); };
  const std::unique_ptr<float, decltype(release)> extra(
      LargePages<float>().allocate(call.channels * g.slots()), release);
  draw(call, g, kernels, extra.get());
  split(call, g, extra.get());
  gather(call, g, extra.get());
}

void warp_fresh(float* out, int64_t channels, int64_t pixels, uint64_t seed, uint32_t frame, int threads,
                const WarpKernels& kernels) {
  const std::vector<uint8_t> streams(CHUNK, FRESH);
  Indices pixel(pixels);
  std::iota(pixel.begin(), pixel.end(), 0);
  over_planes((channels + 3) / 4, pixels, threads, [&](int64_t group, int64_t begin, int64_t end) {
    kernels.normals(&pixel[begin], streams.data(), end - begin, seed, frame, static_cast<uint32_t>(group),
                    std::min<int64_t>(4, channels - 4 * group), out + 4 * group * pixels + begin, pixels);
  });
}

}  // namespace accel
