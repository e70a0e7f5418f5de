// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "backends/cpu/isa/isa.hpp"
#include "mpsnn/geometry.hpp"

/// Matrix products around the micro-kernel. The right operand is packed once, the left one is read where it lies.
namespace mpsnn::cpu {

/// Depth of one pass of the micro-kernel: a panel of 320 x 32 floats (40 KiB) stays in the first-level cache of a machine with
/// AVX-512, half of it in that of others, and sums of at most 320 terms are added up block by block, which keeps the rounding
/// error of long sums low.
constexpr int kMaxDepth = 320;

/// Vectors multiplied and added a cycle: two at best; the tiles reach 85 % of that from the first-level cache.
constexpr double kVectorMultiplyAdds = 2 * 0.85;

template <class Integer>
constexpr Integer round_up(Integer value, Integer multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Part `part` of [0, total) cut into `parts` stretches that differ by at most one.
constexpr std::size_t part_begin(std::size_t total, std::size_t part, std::size_t parts) { return total * part / parts; }

/// Zeros by the largest vector.
extern const float kZeros[64];

/// Floats on a 64-byte boundary, allocated once and not initialized.
class AlignedFloats {
 public:
  AlignedFloats() = default;
  explicit AlignedFloats(std::size_t count);
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float[], Free> data_;
};

/// Hands out stretches of a kernel's scratch memory, each on a 64-byte boundary.
class ScratchLayout {
 public:
  /// Offset in floats of `count` new floats.
  std::size_t add(std::size_t count) {
    const std::size_t offset = floats_;
    floats_ += round_up<std::size_t>(count, 16);
    return offset;
  }
  std::size_t floats() const { return floats_; }

 private:
  std::size_t floats_ = 0;
};

/// The matrix unit, open for the products of one task; nothing where there is none.
class OpenMatrixUnit {
 public:
  explicit OpenMatrixUnit(const MatrixUnit* unit) : unit_(unit) {
    if (unit_) unit_->open();
  }
  ~OpenMatrixUnit() {
    if (unit_) unit_->close();
  }
  OpenMatrixUnit(const OpenMatrixUnit&) = delete;
  OpenMatrixUnit& operator=(const OpenMatrixUnit&) = delete;

 private:
  const MatrixUnit* unit_;
};

/// How a depth x columns matrix is cut for the micro-kernel: into blocks of at most kMaxDepth rows, each into panels as wide as a
/// tile, the last one only as many vectors as it needs. Inside a panel, rows lie behind one another. Blocks are made of whole
/// pieces of `piece` rows, or, where a piece is longer than kMaxDepth, of parts of one piece.
class PackedShape {
 public:
  /// `vectors` of a panel; 0 for as many as the tiles of rows have.
  PackedShape(const Isa& isa, int depth, int columns, int piece = 1, int vectors = 0);
  int depth() const { return depth_; }
  int columns() const { return columns_; }
  /// At least 1, so that a product of depth 0 still writes its start values.
  int blocks() const { return static_cast<int>(begins_.size()) - 1; }
  int block_begin(int block) const { return begins_[block]; }
  int block_depth(int block) const { return begins_[block + 1] - begins_[block]; }
  int tile_columns() const { return tile_columns_; }
  int panels() const { return panels_; }
  /// Columns in use of a panel.
  int panel_columns(int panel) const;
  /// Floats between rows of a panel.
  int panel_stride(int panel) const;
  /// Columns with those that fill up the last vector.
  int padded_columns() const { return padded_columns_; }
  std::size_t count() const { return std::size_t(depth_) * padded_columns_; }
  /// Where row 0 of a panel of a block lies.
  std::size_t offset(int block, int panel) const;

 private:
  int lanes_, tile_columns_, depth_, columns_, panels_, padded_columns_;
  std::vector<int> begins_;
};

/// How many vectors wide the panels of a product in tiles of pieces or of columns should be, which costs least time: for runs of
/// `rows` rows that a tile cannot reach beyond, and sums of `depth` terms.
int best_vectors(const Isa& isa, int rows, int columns, int depth);

/// panel[k * panel_stride + j] := source[k * depth_stride + j * column_stride], and `zeros` zeros behind each row. One of the
/// source's strides should be 1.
void pack_rows(const float* source, std::ptrdiff_t depth_stride, std::ptrdiff_t column_stride, int depth, int columns,
               float* panel, int panel_stride, int zeros);

/// c[i][j] (+)= sum over k of a[i * a_stride + k] * b[k][j] for one block of the packed matrix `b` and the panels [first, last).
/// `c` is the result's column 0. With `start` (padded_columns() values) the sum begins there, else it is added to c.
void multiply_rows(const Isa& isa, int rows, const float* a, std::size_t a_stride, const PackedShape& shape, const float* b,
                   int block, Range panels, float* c, std::size_t c_stride, const float* start);

/// c[i][j] += sum over k of a[i * a_stride + k] * b[k * b_stride + j], with `b` read where it lies.
void multiply_in_place(const Isa& isa, int rows, int columns, int depth, const float* a, std::size_t a_stride, const float* b,
                       std::size_t b_stride, float* c, std::size_t c_stride);

/// c[i][j] (+)= sum over k of a[k * a_stride + i] * b[k * b_stride + j]; rows of `b` are padded to whole vectors. It begins with
/// zero when `overwrites`, else it is added to c.
void multiply_transposed(const Isa& isa, int rows, int columns, int depth, const float* a, std::size_t a_stride, const float* b,
                         std::size_t b_stride, float* c, std::size_t c_stride, bool overwrites);

}  // namespace mpsnn::cpu
