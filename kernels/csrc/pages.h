// Memory as large as a frame, in large pages if Linux grants them: the first touch of 4 KiB pages costs
// more than the work done on them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace accel {

constexpr size_t LARGE_PAGE = size_t{1} << 21;
// Below this size an allocator keeps freed memory and reuses it without a new first touch.
constexpr size_t MAPPED_ANEW = size_t{1} << 25;

// Asks for large pages wherever one fits wholly inside; this is a hint, so a refusal changes nothing.
inline void prefer_large_pages([[maybe_unused]] void* start, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  const auto begin = reinterpret_cast<uintptr_t>(start), end = begin + bytes;
  const uintptr_t first = (begin + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE, last = end / LARGE_PAGE * LARGE_PAGE;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Allocator for std::vector.
template <class T>
struct LargePages {
  using value_type = T;
  LargePages() = default;
  template <class U>
  LargePages(const LargePages<U>&) {}

  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    void* memory = nullptr;
#ifdef __linux__
    if (bytes >= MAPPED_ANEW)
      memory = std::aligned_alloc(LARGE_PAGE, (bytes + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE);
    else
#endif
      memory = std::malloc(bytes);
    if (!memory) throw std::bad_alloc();
    prefer_large_pages(memory, bytes);
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { std::free(memory); }
  bool operator==(const LargePages&) const { return true; }
  bool operator!=(const LargePages&) const { return false; }
};

}  // namespace accel
