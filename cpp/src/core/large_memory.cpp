// SPDX-License-Identifier: Apache-2.0
#include "core/large_memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mpsnn {
namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20, kCacheLine = 64, kLarge = 2 * kHugePage;

}  // namespace

void* allocate_large(std::size_t bytes) {
  const std::size_t alignment = bytes >= kLarge ? kHugePage : kCacheLine;
  void* memory = std::aligned_alloc(alignment, std::max<std::size_t>(1, (bytes + alignment - 1) / alignment) * alignment);
  if (!memory) throw std::bad_alloc();
#if defined(__linux__)
  // What is behind the last whole huge page stays on small ones.
  if (bytes >= kLarge) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return memory;
}

void free_large(void* memory) { std::free(memory); }

}  // namespace mpsnn
