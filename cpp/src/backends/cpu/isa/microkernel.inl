// SPDX-License-Identifier: Apache-2.0
// The kernels of an instruction set, written with the compiler's vector extensions. A file of this folder defines
// MPSNN_ISA_LANES, MPSNN_ISA_REGISTERS, MPSNN_ISA_ROWS and MPSNN_ISA_VECTORS and includes this. Everything is in an unnamed namespace: the same
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

/// Lane l of the result is lane indices[l].
typedef int Indices __attribute__((vector_size(kLanes * sizeof(int))));
#if MPSNN_ISA_LANES == 16 && defined(__AVX512F__)
inline __attribute__((always_inline)) Vector pick_lanes(Vector v, Indices indices) {
#if defined(__clang__)
  return __builtin_ia32_permvarsf512(v, indices);
#else
  return __builtin_ia32_permvarsf512_mask(v, indices, Vector{}, 0xffff);
#endif
}
#elif MPSNN_ISA_LANES == 8 && defined(__AVX2__)
inline __attribute__((always_inline)) Vector pick_lanes(Vector v, Indices indices) { return __builtin_ia32_permvarsf256(v, indices); }
#else
inline Vector pick_lanes(Vector v, Indices indices) {
  Vector result;
  for (int i = 0; i < kLanes; ++i) result[i] = v[indices[i]];
  return result;
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

/// The float at base + Scale * index + Offset in all lanes. The compiler would rather keep a sum of index and offset in a register
/// for each row and step of an unrolled loop, more than there are.
template <int Scale, int Offset>
inline __attribute__((always_inline)) Vector broadcast(const char* base, std::size_t index) {
#if defined(__AVX2__)
  Vector v;
  if constexpr (Scale == 0) {
    asm("vbroadcastss %c2(%1), %0" : "=v"(v) : "r"(base), "i"(Offset));
  } else {
    asm("vbroadcastss %c4(%1,%2,%c3), %0" : "=v"(v) : "r"(base), "r"(index), "i"(Scale), "i"(Offset));
  }
  return v;
#else
  return *reinterpret_cast<const float*>(base + Scale * index + Offset) - Vector{};
#endif
}

template <int... I>
struct Numbers {};
template <int Count, int... I>
struct NumbersBelow : NumbersBelow<Count - 1, Count - 1, I...> {};
template <int... I>
struct NumbersBelow<0, I...> {
  using Type = Numbers<I...>;
};

/// Rows of a tile of pieces: the address of each is a base plus 0 to 4, 5 or 6 strides, all of which the addressing modes reach
/// from three registers.
template <int Rows>
struct PieceRows {
  static constexpr int kBases = (Rows + 6) / 7;
  const char* base[kBases];
  std::size_t stride, stride3, stride5;
  PieceRows(const float* a, std::size_t a_stride) : stride(a_stride * sizeof(float)), stride3(3 * stride), stride5(5 * stride) {
    for (int i = 0; i < kBases; ++i) base[i] = reinterpret_cast<const char*>(a) + 7 * i * stride;
    make_opaque(stride);
    if (Rows > 3) make_opaque(stride3);
    if (Rows > 5) make_opaque(stride5);
  }
  inline __attribute__((always_inline)) void start(std::ptrdiff_t offset, const char* (&p)[kBases]) const {
#pragma GCC unroll 2
    for (int i = 0; i < kBases; ++i) {
      p[i] = base[i] + offset * static_cast<std::ptrdiff_t>(sizeof(float));
      make_opaque(p[i]);
    }
  }
  /// Element (I, K) of the tile in all lanes.
  template <int I, int K>
  inline __attribute__((always_inline)) Vector at(const char* const (&p)[kBases]) const {
    constexpr int kRow = I % 7, kScale = kRow == 2 || kRow == 6 ? 2 : kRow == 4 ? 4 : 1;
    const std::size_t index = kRow == 3 || kRow == 6 ? stride3 : kRow == 5 ? stride5 : stride;
    return broadcast<kRow == 0 ? 0 : kScale, K * static_cast<int>(sizeof(float))>(p[I / 7], index);
  }
};

/// Two lines of each place. Where nothing is to be fetched, `near` is: it is in the cache already.
struct Fetcher {
  const char* place[2];
  std::size_t bytes[2];
  Fetcher(const Ahead& ahead, const void* near) {
    for (int i = 0; i < 2; ++i) {
      place[i] = ahead.place[i] ? ahead.place[i] : static_cast<const char*>(near);
      bytes[i] = ahead.place[i] ? ahead.bytes[i] : 0;
    }
  }
  inline __attribute__((always_inline)) void fetch() {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      __builtin_prefetch(place[i]);
      __builtin_prefetch(place[i] + 64);
      place[i] += bytes[i];
    }
  }
  void store(Ahead& ahead) const {
    for (int i = 0; i < 2; ++i)
      if (ahead.place[i]) ahead.place[i] = place[i];
  }
};

template <int Rows, int Vectors>
void piece_tile(PieceProduct& product) {
  constexpr int kStep = Vectors * kLanes;
  Vector sum[Rows][Vectors] = {};
  const PieceRows<Rows> rows(product.a, product.a_stride);
  const char* p[PieceRows<Rows>::kBases];
  const float* b = product.b;
  const std::size_t depth = product.piece_depth;
  // The sums are needed only at the end, but the lines that they go to may have to come from far.
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors * kLanes; j += 16) __builtin_prefetch(product.c + i * product.c_stride + j, 1);
  const auto step = [&]<int K, int... I>(Numbers<K>, Numbers<I...>) __attribute__((always_inline)) {
    Vector right[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) right[j] = load(b + K * kStep + j * kLanes);
    const auto row = [&]<int Row>(Numbers<Row>) __attribute__((always_inline)) {
      const Vector left = rows.template at<Row, K>(p);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sum[Row][j] += left * right[j];
    };
    (row(Numbers<I>{}), ...);
  };
  constexpr typename NumbersBelow<Rows>::Type kAll{};
  const auto advance = [&](int count) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int i = 0; i < PieceRows<Rows>::kBases; ++i) {
      p[i] += count * sizeof(float);
      make_opaque(p[i]);
    }
    b += count * kStep;
    make_opaque(b);
  };
  Fetcher fetcher(product.ahead, b);
  for (std::size_t piece = 0; piece < product.piece_count; ++piece) {
    rows.start(product.pieces[piece], p);
    std::size_t k = 0;
    for (; k + 4 <= depth; k += 4) {
      fetcher.fetch();
      step(Numbers<0>{}, kAll);
      step(Numbers<1>{}, kAll);
      step(Numbers<2>{}, kAll);
      step(Numbers<3>{}, kAll);
      advance(4);
    }
    for (; k < depth; ++k) {
      step(Numbers<0>{}, kAll);
      advance(1);
    }
  }
  fetcher.store(product.ahead);
  finish_tile<Rows, Vectors>(sum, product.c, product.c_stride, product.start, product.columns);
}

template <int Rows, int Vectors>
void sum_tile(ColumnProduct& product) {
  Vector sum[Rows][Vectors] = {};
  const float* b = product.b;
  std::size_t stride = product.a_stride * sizeof(float), stride3 = 3 * stride, b_stride = product.b_stride;
  make_opaque(stride);
  make_opaque(stride3);
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors * kLanes; j += 16) __builtin_prefetch(product.c + i * product.c_stride + j, 1);
  const char* p = nullptr;
  const auto step = [&]<int K, int... I>(Numbers<K>, Numbers<I...>) __attribute__((always_inline)) {
    Vector right[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) right[j] = load(b + K * b_stride + j * kLanes);
    const auto row = [&]<int Row>(Numbers<Row>) __attribute__((always_inline)) {
      const Vector left = broadcast<K == 0 ? 0 : K == 2 ? 2 : 1, Row * static_cast<int>(sizeof(float))>(p, K == 3 ? stride3 : stride);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sum[Row][j] += left * right[j];
    };
    (row(Numbers<I>{}), ...);
  };
  constexpr typename NumbersBelow<Rows>::Type kAll{};
  Fetcher fetcher(product.ahead, b);
  for (std::size_t line = 0; line < product.line_count; ++line) {
    p = reinterpret_cast<const char*>(product.lines[line] + product.offset);
    std::size_t pixel = 0;
    for (; pixel + 4 <= product.pixels; pixel += 4) {
      step(Numbers<0>{}, kAll);
      step(Numbers<1>{}, kAll);
      step(Numbers<2>{}, kAll);
      step(Numbers<3>{}, kAll);
      p += 4 * stride;
      b += 4 * b_stride;
      make_opaque(p);
      make_opaque(b);
      fetcher.fetch();
    }
    for (; pixel < product.pixels; ++pixel) {
      step(Numbers<0>{}, kAll);
      p += stride;
      b += b_stride;
    }
  }
  fetcher.store(product.ahead);
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      float* c = product.c + i * product.c_stride + j * kLanes;
      store(c, product.overwrites ? sum[i][j] : sum[i][j] + load(c));
    }
  }
}

/// The most rows of a tile of pieces: its sums, a row of b and one value of a have to fit into the registers. Nine rows of three
/// vectors do, but are slower than eight.
constexpr int piece_rows(int vectors) {
  if (MPSNN_ISA_REGISTERS == 32 && vectors == 3) return 8;
  const int rows = (MPSNN_ISA_REGISTERS - 1 - vectors) / vectors;
  return rows < 2 ? 0 : rows > kMaxPieceRows ? kMaxPieceRows : rows;
}
constexpr int kPieceRows[kMaxPieceVectors] = {piece_rows(1), piece_rows(2), piece_rows(3), piece_rows(4)};

struct PieceTable {
  PieceTile tiles[kMaxPieceVectors][kMaxPieceRows] = {};
  ColumnTile sums[kMaxPieceVectors][kMaxPieceRows] = {};
  template <int Vectors, int Rows>
  constexpr void fill() {
    if constexpr (Rows > 0) {
      tiles[Vectors - 1][Rows - 1] = piece_tile<Rows, Vectors>;
      sums[Vectors - 1][Rows - 1] = sum_tile<Rows, Vectors>;
      fill<Vectors, Rows - 1>();
    }
  }
  constexpr PieceTable() {
    fill<1, kPieceRows[0]>();
    fill<2, kPieceRows[1]>();
    fill<3, kPieceRows[2]>();
    fill<4, kPieceRows[3]>();
  }
};
constexpr PieceTable kPieceTiles;

}  // namespace
}  // namespace mpsnn::cpu

#include "backends/cpu/isa/sums.inl"

namespace mpsnn::cpu {
namespace {

#include "backends/cpu/isa/depthwise.inl"
#include "backends/cpu/isa/pooling.inl"

}  // namespace
}  // namespace mpsnn::cpu

#include "backends/cpu/isa/elementwise.inl"
#include "backends/cpu/isa/normalization.inl"
#include "backends/cpu/isa/softmax.inl"
#include "backends/cpu/isa/fully_connected.inl"

namespace mpsnn::cpu {
namespace {

constexpr Isa make_isa(const char* name) {
  return {.name = name,
          .rows = kRows,
          .vectors = kVectors,
          .lanes = kLanes,
          .row_tiles = kRowTiles.tiles,
          .column_tiles = kColumnTiles.tiles,
          .piece_tiles = kPieceTiles.tiles,
          .sum_tiles = kPieceTiles.sums,
          .piece_rows = kPieceRows,
          .sum_products = sum_products,
          .outer_products = outer_products,
          .depthwise_run = depthwise_run,
          .depthwise_sum = depthwise_sum,
          .gather_vectors = gather_vectors,
          .row_products = row_products,
          .weighted_rows = weighted_rows,
          .sum_rows = sum_rows,
          .add_block = add_block,
          .count_different_bits = count_bits<false>,
          .count_common_bits = count_bits<true>,
          .neuron = neuron,
          .neuron_gradient = neuron_gradient,
          .scaled_sum = scaled_sum,
          .scaled_product = scaled_product,
          .drop = drop,
          .normalize = normalize,
          .normalize_gradient = normalize_gradient,
          .add_deviations = add_deviations,
          .add_gradient = add_gradient,
          .pooling = kPoolingKernels,
          .softmax = softmax,
          .log_softmax = log_softmax,
          .softmax_gradient = softmax_gradient,
          .log_softmax_gradient = log_softmax_gradient,
          .softmax_loss = softmax_loss};
}

}  // namespace
}  // namespace mpsnn::cpu
