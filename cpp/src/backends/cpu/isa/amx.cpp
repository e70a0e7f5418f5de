// SPDX-License-Identifier: Apache-2.0
// Intel's AMX: eight tiles of 16 rows of 64 bytes, and products of bfloat16 tiles, 512 multiply-adds a cycle. Six of them for each product of
// float32 numbers are 85 a cycle, where the vector units of AVX-512 do 32.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backends/cpu/isa/isa.hpp"
#include "backends/cpu/isa/split.inl"

namespace mpsnn::cpu {
namespace {

using namespace split;

/// Splits up to 32 numbers of a row, and zeros behind them.
inline __attribute__((always_inline)) void split_step(const float* x, std::size_t count, std::uint16_t* to, std::size_t part) {
  alignas(64) static constexpr std::uint16_t kHighHalves[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                                33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const bool is_full = count >= kDepth;
  const Parts low(is_full ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(first_lanes(count), x));
  const Parts high(is_full ? _mm512_loadu_ps(x + 16)
                           : _mm512_maskz_loadu_ps(count > 16 ? first_lanes(count - 16) : __mmask16(0), x + 16));
  for (int p = 0; p < kParts; ++p)
    _mm512_storeu_si512(to + p * part, _mm512_permutex2var_epi16(low.part[p], _mm512_load_si512(kHighHalves), high.part[p]));
}

void split_rows(const float* x, std::size_t x_stride, std::size_t rows, std::size_t count, std::uint16_t* to, std::size_t to_stride,
                std::size_t part) {
  for (std::size_t i = 0; i < rows; ++i, x += x_stride, to += to_stride)
    for (std::size_t k = 0; k < count; k += kDepth) split_step(x + k, count - k, to + k, part);
}

constexpr std::size_t kTurns = 5;  ///< of Fetch and Meanwhile in each step of a block

/// Fetches what the next product reads, and the sums of the next block, a few lines at a time.
class Fetch {
 public:
  /// `turns`: how often advance() will be called.
  Fetch(const SplitProduct& product, std::size_t turns) : c_stride_(product.c_stride), block_turns_(product.steps * kTurns) {
    if (!product.next_a) return;
    a_ = reinterpret_cast<const char*>(product.next_a);
    left_ = product.next_a_count * sizeof(std::uint16_t) / kLine;
    lines_ = (left_ + turns - 1) / turns;
  }
  void fetch_sums(const float* c) {
    c_ = c;
    rows_left_ = 2 * kRows;
    rows_ = (rows_left_ + block_turns_ - 1) / block_turns_;
  }
  inline __attribute__((always_inline)) void advance() {
    std::size_t lines = lines_ < left_ ? lines_ : left_;
    for (left_ -= lines; lines > 0; --lines, a_ += kLine) __builtin_prefetch(a_);
    std::size_t rows = rows_ < rows_left_ ? rows_ : rows_left_;
    for (rows_left_ -= rows; rows > 0; --rows, c_ += c_stride_) {
      __builtin_prefetch(c_);
      __builtin_prefetch(c_ + kColumns);
    }
  }

 private:
  static constexpr std::size_t kLine = 64;
  std::size_t c_stride_, block_turns_, left_ = 0, lines_ = 0, rows_left_ = 0, rows_ = 0;
  const char* a_ = nullptr;
  const float* c_ = nullptr;
};

/// Splits rows a few steps at a time, between the products of a tile: those keep the matrix unit busy, and the vector units idle.
class Meanwhile {
 public:
  /// `turns`: how often advance() will be called.
  Meanwhile(const SplitRows* rows, std::size_t turns) : rows_(rows) {
    if (!rows) return;
    left_ = rows->rows * ((rows->count + kDepth - 1) / kDepth);
    steps_ = (left_ + turns - 1) / turns;
    x_ = rows->x;
    to_ = rows->to;
  }
  inline __attribute__((always_inline)) void advance() { split(steps_ < left_ ? steps_ : left_); }
  void finish() { split(left_); }

 private:
  inline __attribute__((always_inline)) void split(std::size_t steps) {
    left_ -= steps;
    for (; steps > 0; --steps) {
      split_step(x_ + k_, rows_->count - k_, to_ + k_, rows_->part);
      if ((k_ += kDepth) < rows_->count) continue;
      k_ = 0;
      x_ += rows_->x_stride;
      to_ += rows_->to_stride;
    }
  }

  const SplitRows* rows_;
  std::size_t left_ = 0, steps_ = 0, k_ = 0;
  const float* x_ = nullptr;
  std::uint16_t* to_ = nullptr;
};

void split_pairs(const float* x, std::size_t x_stride, std::size_t depth, std::size_t columns, std::uint16_t* to, std::size_t to_columns) {
  const std::size_t padded = (depth + kDepth - 1) / kDepth * kDepth;
  for (std::size_t column = 0; column < columns; column += kColumns, to += to_columns) {
    const __mmask16 lanes = first_lanes(columns - column);
    for (std::size_t k = 0; k < padded; k += 2) {
      const Parts a(_mm512_maskz_loadu_ps(k < depth ? lanes : __mmask16(0), x + k * x_stride + column));
      const Parts b(_mm512_maskz_loadu_ps(k + 1 < depth ? lanes : __mmask16(0), x + (k + 1) * x_stride + column));
      std::uint16_t* row = to + k / kDepth * (kParts * kTile) + k % kDepth / 2 * (2 * kColumns);
      for (int p = 0; p < kParts; ++p) _mm512_storeu_si512(row + p * kTile, pairs(a.part[p], b.part[p]));
    }
  }
}

void split_columns(const float* x, std::size_t x_stride, std::size_t rows, std::size_t count, std::uint16_t* to, std::size_t to_stride,
                   std::size_t part) {
  const std::size_t padded = (count + kDepth - 1) / kDepth * kDepth;
  alignas(64) float block[16 * kDepth];  // the transposed numbers of a step, split where they lie in the first-level cache
  for (std::size_t row = 0; row < rows; row += 16, to += 16 * to_stride) {
    const __mmask16 lanes = first_lanes(rows - row);
    for (std::size_t k = 0; k < padded; k += kDepth) {
      for (int half = 0; half < 2; ++half) {
        __m512 v[16];
        for (int i = 0; i < 16; ++i) {
          const std::size_t at = k + half * 16 + i;
          v[i] = _mm512_maskz_loadu_ps(at < count ? lanes : __mmask16(0), x + at * x_stride + row);
        }
        transpose(v);
        for (int i = 0; i < 16; ++i) _mm512_store_ps(block + i * kDepth + half * 16, v[i]);
      }
      split_rows(block, kDepth, rows - row < 16 ? rows - row : 16, kDepth, to + k, to_stride, part);
    }
  }
}

void gather_steps(const std::uint16_t* from, std::size_t stride, std::size_t rows, const std::uint16_t* places, std::uint16_t* to,
                  std::size_t to_stride) {
  const __m512i lanes = _mm512_loadu_si512(places);
  for (std::size_t i = 0; i < rows; ++i, from += stride, to += to_stride)
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(_mm512_loadu_si512(from), lanes, _mm512_loadu_si512(from + kDepth)));
}

/// Sums in tiles 0 to 3, rows of the left operand in tiles 4 and 5, columns of the right one in tiles 6 and 7.
struct alignas(64) Configuration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void open() {
  static constexpr Configuration kConfiguration;
  _tile_loadconfig(&kConfiguration);
}
void close() { _tile_release(); }

constexpr std::size_t kShortSteps = 2;

/// One or two tiles each way.
template <int RowTiles, int ColumnTiles>
struct Block {
  const SplitProduct& product;
  const std::uint16_t* a;
  const std::uint16_t* b;

  inline __attribute__((always_inline)) void load_a(std::size_t step, int part) const {
    const std::uint16_t* p = a + part * product.a_part + (product.offsets ? product.offsets[step] : static_cast<std::ptrdiff_t>(step) * kDepth);
    const std::size_t stride = product.a_stride * sizeof(std::uint16_t);
    _tile_loadd(4, p, stride);
    if constexpr (RowTiles > 1) _tile_loadd(5, p + kRows * product.a_stride, stride);
  }
  inline __attribute__((always_inline)) void load_b(std::size_t step, int part) const {
    const std::uint16_t* p = b + (step * kParts + part) * kTile;
    _tile_loadd(6, p, 64);
    if constexpr (ColumnTiles > 1) _tile_loadd(7, p + product.b_columns, 64);
  }
  static inline __attribute__((always_inline)) void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (ColumnTiles > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (RowTiles > 1) _tile_dpbf16ps(2, 5, 6);
    if constexpr (RowTiles > 1 && ColumnTiles > 1) _tile_dpbf16ps(3, 5, 7);
  }
  inline __attribute__((always_inline)) void clear() const {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  inline __attribute__((always_inline)) void load_c(const float* c) const {
    const std::size_t stride = product.c_stride * sizeof(float);
    _tile_loadd(0, c, stride);
    if constexpr (ColumnTiles > 1) _tile_loadd(1, c + kColumns, stride);
    if constexpr (RowTiles > 1) _tile_loadd(2, c + kRows * product.c_stride, stride);
    if constexpr (RowTiles > 1 && ColumnTiles > 1) _tile_loadd(3, c + kRows * product.c_stride + kColumns, stride);
  }
  inline __attribute__((always_inline)) void run(Meanwhile& meanwhile, Fetch& fetch) const {
    for (std::size_t step = 0; step < product.steps; ++step) {
      load_a(step, 2);
      load_b(step, 0);
      multiply();
      meanwhile.advance();
      fetch.advance();
      load_a(step, 1);
      multiply();
      meanwhile.advance();
      fetch.advance();
      load_b(step, 1);
      multiply();
      meanwhile.advance();
      fetch.advance();
      load_a(step, 0);
      multiply();
      meanwhile.advance();
      fetch.advance();
      load_b(step, 2);
      multiply();
      meanwhile.advance();
      fetch.advance();
    }
    for (std::size_t step = 0; step < product.steps; ++step) {
      load_a(step, 0);
      load_b(step, 0);
      multiply();
    }
  }
};

inline float* row_of(const SplitProduct& product, int row) {
  return product.c + (product.c_rows ? product.c_rows[row] : row * static_cast<std::ptrdiff_t>(product.c_stride));
}

/// Rows of `sums`, one or two tiles wide, into the result from (row, column) on.
template <int ColumnTiles>
void add_rows(const float* sums, const SplitProduct& product, int row, int rows, int column) {
  __mmask16 lanes[ColumnTiles];
  __m512 start[ColumnTiles];
  for (int j = 0; j < ColumnTiles; ++j) {
    lanes[j] = first_lanes(product.columns - column - j * kColumns);
    start[j] = product.start ? _mm512_maskz_loadu_ps(lanes[j], product.start + column + j * kColumns) : _mm512_setzero_ps();
  }
  const bool adds = !product.overwrites && !product.start;
  for (int i = row; i < row + rows; ++i, sums += 2 * kColumns) {
    if (product.c_rows && product.c_rows[i] < 0) continue;
    float* c = row_of(product, i) + column;
    for (int j = 0; j < ColumnTiles; ++j, c += kColumns)
      _mm512_mask_storeu_ps(c, lanes[j], _mm512_add_ps(_mm512_load_ps(sums + j * kColumns), adds ? _mm512_maskz_loadu_ps(lanes[j], c) : start[j]));
  }
}

template <int RowTiles, int ColumnTiles>
void block(const SplitProduct& product, int row, int column, Meanwhile& meanwhile, Fetch& fetch) {
  const Block<RowTiles, ColumnTiles> block{product, product.a + row * product.a_stride, product.b + column / kColumns * product.b_columns};
  const bool is_whole = !product.start && !product.c_rows && (product.overwrites || product.chains) && row + RowTiles * kRows <= product.rows && column + ColumnTiles * kColumns <= product.columns;
  if (is_whole) {
    float* c = product.c + row * product.c_stride + column;
    product.chains ? block.load_c(c) : block.clear();
    block.run(meanwhile, fetch);
    const std::size_t stride = product.c_stride * sizeof(float);
    _tile_stored(0, c, stride);
    if constexpr (ColumnTiles > 1) _tile_stored(1, c + kColumns, stride);
    if constexpr (RowTiles > 1) _tile_stored(2, c + kRows * product.c_stride, stride);
    if constexpr (RowTiles > 1 && ColumnTiles > 1) _tile_stored(3, c + kRows * product.c_stride + kColumns, stride);
    return;
  }
  block.clear();
  block.run(meanwhile, fetch);
  alignas(64) float sums[2 * kRows][2 * kColumns];
  _tile_stored(0, sums[0], sizeof sums[0]);
  if constexpr (ColumnTiles > 1) _tile_stored(1, sums[0] + kColumns, sizeof sums[0]);
  if constexpr (RowTiles > 1) _tile_stored(2, sums[kRows], sizeof sums[0]);
  if constexpr (RowTiles > 1 && ColumnTiles > 1) _tile_stored(3, sums[kRows] + kColumns, sizeof sums[0]);
  const int rows = product.rows - row < RowTiles * kRows ? product.rows - row : RowTiles * kRows;
  add_rows<ColumnTiles>(sums[0], product, row, rows, column);
}

void multiply(const SplitProduct& product) {
  const std::size_t blocks = ((product.rows + 2 * kRows - 1) / (2 * kRows)) * ((product.columns + 2 * kColumns - 1) / (2 * kColumns));
  const std::size_t turns = blocks * product.steps * kTurns;
  Meanwhile meanwhile(product.meanwhile, turns);
  Fetch fetch(product, turns);
  const auto multiply_block = [&](int row, int column) {
    const bool is_wide = product.columns - column > kColumns, is_high = product.rows - row > kRows;
    if (is_wide) is_high ? block<2, 2>(product, row, column, meanwhile, fetch) : block<1, 2>(product, row, column, meanwhile, fetch);
    else is_high ? block<2, 1>(product, row, column, meanwhile, fetch) : block<1, 1>(product, row, column, meanwhile, fetch);
  };
  // Either operand stays in the first-level cache for a while. Short sums are written fast, and fastest along their rows.
  if (product.steps <= kShortSteps)
    for (int row = 0; row < product.rows; row += 2 * kRows)
      for (int column = 0; column < product.columns; column += 2 * kColumns) {
        const bool is_last = column + 2 * kColumns >= product.columns, is_end = is_last && row + 2 * kRows >= product.rows;
        if (product.next_c)
          fetch.fetch_sums(is_end ? product.next_c : product.c + (is_last ? row + 2 * kRows : row) * product.c_stride + (is_last ? 0 : column + 2 * kColumns));
        multiply_block(row, column);
      }
  else
    for (int column = 0; column < product.columns; column += 2 * kColumns)
      for (int row = 0; row < product.rows; row += 2 * kRows) multiply_block(row, column);
  meanwhile.finish();
}

}  // namespace

const MatrixUnit kAmx = {open, close, split_rows, split_columns, gather_steps, split_pairs, multiply, &kSplitFour, &kSplitFiveTaps, &kSplitTwo};

bool may_use_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16) == 0 || (d & kTiles) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM: Linux keeps eight KiB more for each thread
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace mpsnn::cpu
