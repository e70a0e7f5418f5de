// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "backends/cpu/correlation.hpp"
#include "backends/cpu/gemm.hpp"
#include "backends/cpu/split_lines.hpp"

namespace mpsnn::cpu {

/// False without a matrix unit, and for what it is not made for.
bool can_split(const std::vector<CorrelationPart>& parts);
/// Cycles of one core that a SplitCorrelation is estimated to take, once its weights are packed.
double split_cycles(std::vector<CorrelationPart> parts);

/// On the matrix unit. A task splits the source lines that it needs once for all parts.
class SplitCorrelation final : public Correlation {
 public:
  explicit SplitCorrelation(std::vector<CorrelationPart> parts);

  void pack(const float* weights, const float* bias) override;
  std::size_t task_count() const override { return image_parts_ * line_parts_ * column_parts_ * channel_parts_; }
  std::size_t packed_floats() const override { return packed_floats_; }
  std::size_t scratch_floats() const override { return scratch_floats_; }
  bool has_whole_pixels() const override;
  void run_task(std::size_t task, const float* source, float* result, FinishPixels* finish, float* scratch) const override;
  /// "implicit GEMM amx, 3 x bfloat16, 4 phases"
  std::string algorithm() const override;

 private:
  /// A correlation, and where its weights lie: for each group, tile of columns, block of channels.
  struct Part {
    CorrelationPart correlation;
    std::vector<std::vector<SplitPiece>> pieces;       ///< of each block
    std::vector<std::vector<std::ptrdiff_t>> offsets;  ///< of each block's steps, in the copied lines
    std::vector<std::size_t> first_step;               ///< of each block, and the count of all
    std::size_t weights_offset = 0;
  };
  /// Windows of a task, and its columns: pairs of tiles, counted through all groups.
  struct Task {
    SplitLines::Stretch windows;
    Range units;
  };
  /// Rows of the left operand that are multiplied in one run, and their places in the result.
  struct Runs {
    int images, lines, rows;  ///< runs, and their rows
    const std::ptrdiff_t* places;
  };

  void choose_parts();
  void lay_out_weights();
  Task task_at(std::size_t task) const;
  Range block_channels(int block) const { return {block * block_channels_, std::min(group_channels_, (block + 1) * block_channels_)}; }
  int blocks() const { return std::max(1, ceil_divide(group_channels_, block_channels_)); }
  int group_units() const { return ceil_divide(group_columns_, kUnitColumns); }
  std::size_t tile_elements(const Part& part) const { return part.first_step.back() * split::kParts * split::kTile; }
  const CorrelationShape& shape() const { return parts_[0].correlation.shape; }
  void pack_unit(const Part& part, const float* weights, int group, int unit) const;
  void fill_step(const CorrelationWeights& weights, const float* from, const SplitPiece& piece, Range terms, Range channels, Range columns,
                 float* panel) const;
  Runs choose_runs(const CorrelationShape& shape, const Range (&windows)[3], std::ptrdiff_t* places) const;
  void multiply(const Part& part, const Task& task, int group, Range units, int block, float* result, float* scratch) const;

  static constexpr int kUnitColumns = 2 * split::kColumns;

  std::vector<Part> parts_;
  int merged_ = 1;                      ///< groups that share tiles as one wider group, with zeros between them
  int group_channels_, group_columns_;  ///< of merged groups
  int block_channels_ = 1;              ///< that are split together
  std::vector<SplitLines> lines_;       ///< one, or none without work
  int most_lines_ = 0, most_columns_ = 0;  ///< of windows, in any part
  std::size_t image_parts_ = 0, line_parts_ = 1, column_parts_ = 1, channel_parts_ = 1, places_offset_ = 0, packed_floats_ = 0, scratch_floats_ = 0;
  AlignedFloats start_;
  bool has_start_ = false;
};

}  // namespace mpsnn::cpu
