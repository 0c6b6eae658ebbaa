// Rates that bound the attention kernel on this machine, all threads together: 8-bit dot products per
// second from registers, and bytes per second read from memory. Built and run by bench_limits.py.
#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;

static double seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

// 8-bit multiply-adds done by one thread in `rounds` rounds.
static double multiply(int64_t rounds) {
#if defined(__AVX512VNNI__)
  __m512i a[16], q = _mm512_set1_epi32(0x01020304), c = _mm512_set1_epi32(0x04030201);
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) a[j] = _mm512_setzero_si512();
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      a[j] = _mm512_dpbusd_epi32(a[j], q, c);
      asm volatile("" : "+v"(a[j]));
    }
  return 16.0 * 64 * rounds;
#else
  __m256i a[12], q = _mm256_set1_epi8(1), c = _mm256_set1_epi8(2);
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) a[j] = _mm256_setzero_si256();
  for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) {
      a[j] = _mm256_add_epi16(a[j], _mm256_maddubs_epi16(q, c));
      asm volatile("" : "+x"(a[j]), "+x"(q));
    }
  return 12.0 * 32 * rounds;
#endif
}

static double read(const std::vector<int64_t>& data) {
  int64_t sum = 0;
  for (int64_t x : data) sum += x;
  volatile int64_t sink = sum;
  (void)sink;
  return 8.0 * data.size();
}

template <class Body>
static double rate(int threads, Body body) {
  std::vector<std::thread> pool;
  std::atomic<int64_t> total{0};
  const auto start = Clock::now();
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&] { total += static_cast<int64_t>(body()); });
  for (auto& t : pool) t.join();
  return total / seconds(start);
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  multiply(1000000);
  const double products = rate(threads, [] { return multiply(20000000); });
  std::vector<std::vector<int64_t>> data(threads, std::vector<int64_t>(1 << 24, 1));
  std::atomic<int> next{0};
  const double bytes = rate(threads, [&] { return read(data[next++]); });
  std::printf("{\"multiply_adds_per_second\": %.4g, \"bytes_per_second\": %.4g}\n", products, bytes);
}
