// The number of heads packed at a time, and the memory that takes.
#include <algorithm>

#include "attention.h"

namespace accel {

Footprint footprint(const AttentionCall& c) {
  const auto up = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
  const int64_t pairs = c.batch * c.key_heads;
  const int64_t tasks = c.heads / c.key_heads * ((c.queries + QUERY_BLOCK - 1) / QUERY_BLOCK);
  // One head at a time if it has work for all threads; with few queries, as many heads as that needs.
  const int64_t wanted = c.threads > 1 ? (4 * c.threads + tasks - 1) / tasks : 1;
  const int64_t keys = up(c.keys, KEY_BLOCK), width = up(c.dim, 4), value_width = up(c.value_dim, TILE);
  Footprint f;
  f.pairs = std::min(pairs, std::max<int64_t>(1, wanted));
  f.pair_bytes = keys * (width + value_width)                // packed K and V
                 + keys * 9                                  // scale, correction, size of values of a key
                 + keys / KEY_BLOCK * value_width * 4        // scale of a block's channels
                 + (c.dim + value_width) * 4;                // means
  f.task_bytes = QUERY_BLOCK * (width + value_width * 4 + up(std::max(c.dim, c.value_dim), 32) * 4) +
                 CHUNK * KEY_BLOCK * 5 + KEY_BLOCK * 12 + QUERY_BLOCK * 28 + value_width * 4;
  return f;
}

}  // namespace accel
