// SPDX-License-Identifier: Apache-2.0
// The kernels of an instruction set, written with the compiler's vector extensions. A file of this folder defines
// MPSNN_ISA_LANES, MPSNN_ISA_ROWS and MPSNN_ISA_VECTORS and includes this. Everything is in an unnamed namespace: the same
// template compiled with other flags must not be merged with ours.

namespace mpsnn::cpu {
namespace {

constexpr int kLanes = MPSNN_ISA_LANES, kRows = MPSNN_ISA_ROWS, kVectors = MPSNN_ISA_VECTORS;

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline __attribute__((always_inline)) Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline __attribute__((always_inline)) void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }

/// The first `count` lanes; the rest is neither read nor written.
#if MPSNN_ISA_LANES == 16 && defined(__AVX512F__)
inline Vector load_part(const float* p, int count) {
  return __builtin_ia32_loadups512_mask(p, Vector{}, static_cast<unsigned short>((1u << count) - 1));
}
inline void store_part(float* p, Vector v, int count) {
  __builtin_ia32_storeups512_mask(p, v, static_cast<unsigned short>((1u << count) - 1));
}
#elif MPSNN_ISA_LANES == 8 && defined(__AVX2__)
typedef int Mask __attribute__((vector_size(32)));
inline Mask first_lanes(int count) { return Mask{0, 1, 2, 3, 4, 5, 6, 7} < count; }
inline Vector load_part(const float* p, int count) {
  return __builtin_ia32_maskloadps256(reinterpret_cast<const Vector*>(p), first_lanes(count));
}
inline void store_part(float* p, Vector v, int count) {
  __builtin_ia32_maskstoreps256(reinterpret_cast<Vector*>(p), first_lanes(count), v);
}
#else
inline Vector load_part(const float* p, int count) {
  Vector v = {};
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
inline void store_part(float* p, Vector v, int count) {
  for (int i = 0; i < count; ++i) p[i] = v[i];
}
#endif

/// Hides how a pointer was made: otherwise the compiler keeps one induction variable for each row of the tile, more than there
/// are registers, and reloads them in the innermost loop.
template <class T>
inline __attribute__((always_inline)) void make_opaque(T& value) {
  asm("" : "+r"(value));
}

/// a(i, k) for the rows of a tile. Rows are addressed from every third one, [p], [p + s] and [p + 2 * s].
template <int Rows>
struct RowOperand {
  static constexpr int kBases = (Rows + 2) / 3;
  const char* base[kBases];
  std::size_t stride;
  RowOperand(const float* a, std::size_t a_stride) : stride(a_stride * sizeof(float)) {
    for (int i = 0; i < kBases; ++i) {
      base[i] = reinterpret_cast<const char*>(a) + 3 * i * stride;
      make_opaque(base[i]);
    }
    make_opaque(stride);
  }
  inline __attribute__((always_inline)) float at(int i, int k) const {
    return *reinterpret_cast<const float*>(base[i / 3] + (i % 3) * stride + k * sizeof(float));
  }
  inline __attribute__((always_inline)) void advance(int depth) {
    for (int i = 0; i < kBases; ++i) {
      base[i] += depth * sizeof(float);
      make_opaque(base[i]);
    }
  }
};

/// a(i, k) where the rows are neighbours in memory.
template <int Rows>
struct ColumnOperand {
  const float* base;
  std::size_t stride;
  ColumnOperand(const float* a, std::size_t a_stride) : base(a), stride(a_stride) {}
  inline __attribute__((always_inline)) float at(int i, int k) const { return base[k * stride + i]; }
  inline __attribute__((always_inline)) void advance(int depth) { base += depth * stride; }
};

template <int Rows, int Vectors>
inline __attribute__((always_inline)) void finish_tile(const Vector (&sum)[Rows][Vectors], float* c, std::size_t c_stride,
                                                       const float* start, int columns) {
  const int last = columns - (Vectors - 1) * kLanes;  // columns in the last vector
#pragma GCC unroll 32
  for (int i = 0; i < Rows; ++i) {
    float* row = c + i * c_stride;
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      float* p = row + j * kLanes;
      if (j + 1 < Vectors || last == kLanes) {
        store(p, sum[i][j] + load(start ? start + j * kLanes : p));
      } else {
        store_part(p, sum[i][j] + (start ? load(start + j * kLanes) : load_part(p, last)), last);
      }
    }
  }
}

template <int Rows, int Vectors, template <int> class Operand>
void gemm_tile(std::size_t depth, const float* a, std::size_t a_stride, const float* b, std::size_t b_stride, float* c,
               std::size_t c_stride, const float* start, int columns) {
  Vector sum[Rows][Vectors] = {};
  Operand<Rows> operand(a, a_stride);
  const auto step = [&](int k, const float* row) __attribute__((always_inline)) {
    Vector right[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) right[j] = load(row + j * kLanes);
#pragma GCC unroll 32
    for (int i = 0; i < Rows; ++i) {
      const float left = operand.at(i, k);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sum[i][j] += left * right[j];
    }
  };
  std::size_t k = 0;
  for (; k + 4 <= depth; k += 4) {
    step(0, b);
    step(1, b + b_stride);
    step(2, b + 2 * b_stride);
    step(3, b + 3 * b_stride);
    operand.advance(4);
    b += 4 * b_stride;
  }
  for (; k < depth; ++k) {
    step(0, b);
    operand.advance(1);
    b += b_stride;
  }
  finish_tile<Rows, Vectors>(sum, c, c_stride, start, columns);
}

template <template <int> class Operand>
struct TileTable {
  GemmTile tiles[kRows * kVectors];
  template <int... Index>
  struct Indices {};
  template <int Count, int... Index>
  struct MakeIndices : MakeIndices<Count - 1, Count - 1, Index...> {};
  template <int... Index>
  struct MakeIndices<0, Index...> {
    using Type = Indices<Index...>;
  };
  template <int... Index>
  constexpr explicit TileTable(Indices<Index...>) : tiles{gemm_tile<Index / kVectors + 1, Index % kVectors + 1, Operand>...} {}
  constexpr TileTable() : TileTable(typename MakeIndices<kRows * kVectors>::Type{}) {}
};

constexpr TileTable<RowOperand> kRowTiles;
constexpr TileTable<ColumnOperand> kColumnTiles;

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

#include "backends/cpu/isa/elementwise.inl"

namespace mpsnn::cpu {
namespace {

constexpr Isa make_isa(const char* name) {
  return {name, kRows, kVectors, kLanes, kRowTiles.tiles, kColumnTiles.tiles, sum_products, sum_rows,
          count_bits<false>, count_bits<true>, neuron, neuron_gradient, normalize, normalize_gradient, sum_deviations, sum_gradient};
}

}  // namespace
}  // namespace mpsnn::cpu
