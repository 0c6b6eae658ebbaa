// Threads. Torch's own OpenMP runtime is used if Python passes its GOMP_parallel: a second runtime would
// start a second pool that competes with the first for the cores. Without it, plain threads are used.
#include <atomic>
#include <new>
#include <thread>
#include <vector>

#include "api.h"

namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
GompParallel gomp_parallel = nullptr;

struct Work {
  std::atomic<int64_t> next{0};
  int64_t count;
  void (*body)(void*, int64_t);
  void* context;
  std::atomic<bool> failed{false};
};

void drain(void* pointer) {
  Work& work = *static_cast<Work*>(pointer);
  // Nothing may be thrown out of a thread: the caller throws instead, and nobody takes more work.
  try {
    for (int64_t i; (i = work.next.fetch_add(1)) < work.count;) work.body(work.context, i);
  } catch (const std::bad_alloc&) {
    work.failed = true;
    work.next = work.count;
  }
}

void run(Work& work, int threads) {
  if (threads <= 1) return drain(&work);
  if (gomp_parallel) return gomp_parallel(drain, &work, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) pool.emplace_back(drain, &work);
  drain(&work);
  for (auto& thread : pool) thread.join();
}

}  // namespace

ACCEL_EXPORT void accel_set_gomp_parallel(void* function) {
  gomp_parallel = reinterpret_cast<GompParallel>(function);
}

namespace accel {

void parallel_for(int64_t count, int threads, void (*body)(void*, int64_t), void* context) {
  Work work{{0}, count, body, context};
  run(work, threads > count ? static_cast<int>(count) : threads);
  if (work.failed) throw std::bad_alloc();
}

}  // namespace accel
