// SPDX-License-Identifier: Apache-2.0
// Sums over rows, of products, and of bits. Included by microkernel.inl.

namespace mpsnn::cpu {
namespace {

/// Four vectors at a time: a chain of additions waits four cycles for each, so one alone would run at an eighth of the speed.
template <int Vectors>
inline __attribute__((always_inline)) void sum_products_strip(std::size_t i, std::size_t terms, const float* const* a,
                                                              const float* const* b, const float* start, float* result) {
  Vector sum[Vectors] = {};
  for (std::size_t t = 0; t < terms; ++t) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sum[j] += load(a[t] + i + j * kLanes) * load(b[t] + i + j * kLanes);
  }
#pragma GCC unroll 4
  for (int j = 0; j < Vectors; ++j) store(result + i + j * kLanes, start ? sum[j] + load(start + i + j * kLanes) : sum[j]);
}

void sum_products(std::size_t count, std::size_t terms, const float* const* a, const float* const* b, const float* start,
                  float* result) {
  std::size_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) sum_products_strip<4>(i, terms, a, b, start, result);
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) sum_products_strip<2>(i, terms, a, b, start, result);
  for (; i + kLanes <= count; i += kLanes) sum_products_strip<1>(i, terms, a, b, start, result);
  if (i == count) return;
  const int rest = static_cast<int>(count - i);
  Vector sum = {};
  for (std::size_t t = 0; t < terms; ++t) sum += load_part(a[t] + i, rest) * load_part(b[t] + i, rest);
  if (start) sum += load_part(start + i, rest);
  store_part(result + i, sum, rest);
}

/// Past the caches: `p` is on a vector's boundary.
inline __attribute__((always_inline)) void stream(float* p, Vector v) {
#if defined(__clang__)
  __builtin_nontemporal_store(v, reinterpret_cast<Vector*>(p));
#elif defined(__AVX512F__)
  __builtin_ia32_movntps512(p, v);
#elif defined(__AVX2__)
  __builtin_ia32_movntps256(p, v);
#else
  store(p, v);
#endif
}

/// Behind such stores, before another thread is told.
inline void end_streams() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

/// Two rows of four vectors at a time: a quarter of a page is written to each of two places.
template <bool Streams>
void multiply_outer(std::size_t rows, std::size_t columns, std::size_t depth, const float* a, std::size_t a_stride, const float* b,
                       std::size_t b_stride, float* c, std::size_t c_stride) {
  constexpr std::size_t kStretch = 1024;  // of b, in the first-level cache for all rows
  for (std::size_t begin = 0; begin < columns; begin += kStretch) {
    const std::size_t end = begin + kStretch < columns ? begin + kStretch : columns;
    for (std::size_t i = 0; i < rows; i += 2) {
      const std::size_t second = i + 1 < rows ? 1 : 0;  // an odd last row is computed twice
      std::size_t j = begin;
      for (; j + 4 * kLanes <= end; j += 4 * kLanes) {
        Vector sum[2][4] = {};
        for (std::size_t k = 0; k < depth; ++k) {
          const float upper = a[k * a_stride + i], lower = a[k * a_stride + i + second];
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) {
            const Vector right = load(b + k * b_stride + j + v * kLanes);
            sum[0][v] += upper * right;
            sum[1][v] += lower * right;
          }
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          float* to = c + i * c_stride + j + v * kLanes;
          if (Streams) stream(to, sum[0][v]), stream(to + second * c_stride, sum[1][v]);
          else store(to, sum[0][v]), store(to + second * c_stride, sum[1][v]);
        }
      }
      for (; j < end; j += kLanes) {
        const int part = end - j < kLanes ? static_cast<int>(end - j) : kLanes;
        for (std::size_t row = i; row <= i + second; ++row) {
          Vector sum = {};
          for (std::size_t k = 0; k < depth; ++k) sum += a[k * a_stride + row] * load_part(b + k * b_stride + j, part);
          store_part(c + row * c_stride + j, sum, part);
        }
      }
    }
  }
}

void outer_products(std::size_t rows, std::size_t columns, std::size_t depth, const float* a, std::size_t a_stride, const float* b,
                    std::size_t b_stride, float* c, std::size_t c_stride, bool streams) {
  if (!streams) return multiply_outer<false>(rows, columns, depth, a, a_stride, b, b_stride, c, c_stride);
  if ((reinterpret_cast<std::uintptr_t>(c) | c_stride * sizeof(float)) % (kLanes * sizeof(float)) == 0)
    multiply_outer<true>(rows, columns, depth, a, a_stride, b, b_stride, c, c_stride);
  else
    multiply_outer<false>(rows, columns, depth, a, a_stride, b, b_stride, c, c_stride);
  end_streams();
}

void sum_rows(std::size_t count, std::size_t rows, const float* a, std::size_t stride, float* result) {
  std::size_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    Vector sum[4] = {};
    for (std::size_t r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[j] += load(a + r * stride + i + j * kLanes);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) store(result + i + j * kLanes, load(result + i + j * kLanes) + sum[j]);
  }
  for (; i < count; i += kLanes) {
    const int part = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    Vector sum = {};
    for (std::size_t r = 0; r < rows; ++r) sum += part == kLanes ? load(a + r * stride + i) : load_part(a + r * stride + i, part);
    store_part(result + i, sum + load_part(result + i, part), part);
  }
}

void add_block(std::size_t rows, std::size_t count, const float* a, std::size_t stride, float* result, std::size_t result_stride) {
  const std::size_t whole = count / kLanes * kLanes;
  const int rest = static_cast<int>(count - whole);
  for (std::size_t r = 0; r < rows; ++r, a += stride, result += result_stride) {
    for (std::size_t i = 0; i < whole; i += kLanes) store(result + i, load(result + i) + load(a + i));
    if (rest != 0) store_part(result + whole, load_part(result + whole, rest) + load_part(a + whole, rest), rest);
  }
}

inline __attribute__((always_inline)) int bits_set(std::uint64_t word) {
#if defined(__POPCNT__) || defined(__aarch64__)
  return __builtin_popcountll(word);
#else  // the compiler would call a function that looks up bytes
  word -= word >> 1 & 0x5555555555555555ull;
  word = (word & 0x3333333333333333ull) + (word >> 2 & 0x3333333333333333ull);
  word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0full;
  return static_cast<int>(word * 0x0101010101010101ull >> 56);
#endif
}

/// Four rows at a time: the words of `a` are loaded once for them, and no sum waits for the one before.
template <bool kCommon>
void count_bits(std::size_t rows, std::size_t words, const std::uint64_t* a, const std::uint64_t* b, std::size_t stride, int* counts) {
  const auto met = [](std::uint64_t p, std::uint64_t q) { return bits_set(kCommon ? p & q : p ^ q); };
  std::size_t r = 0;
  for (; r + 4 <= rows; r += 4, b += 4 * stride) {
    int sum[4] = {};
    for (std::size_t i = 0; i < words; ++i) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum[k] += met(a[i], b[k * stride + i]);
    }
    for (int k = 0; k < 4; ++k) counts[r + k] += sum[k];
  }
  for (; r < rows; ++r, b += stride)
    for (std::size_t i = 0; i < words; ++i) counts[r] += met(a[i], b[i]);
}

}  // namespace
}  // namespace mpsnn::cpu
