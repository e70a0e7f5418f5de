// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "backends/cpu/correlation.hpp"
#include "backends/cpu/gemm.hpp"
#include "backends/cpu/source_lines.hpp"

namespace mpsnn::cpu {

/// In the tiles of the vector registers.
class VectorCorrelation final : public Correlation {
 public:
  VectorCorrelation(const CorrelationShape& shape, CorrelationWeights weights);

  void pack(const float* weights, const float* bias) override;
  void keep_weights() override { unpacked_ = nullptr; }

  std::size_t task_count() const override { return line_parts_ * column_parts_ * channel_parts_; }
  std::size_t packed_floats() const override { return packed_.count() * shape_.groups; }
  std::size_t scratch_floats() const override { return scratch_.floats(); }
  bool has_whole_pixels() const override { return channel_parts_ == 1 && shape_.step_x == 1; }
  void run_task(std::size_t task, const float* source, float* result, FinishPixels* finish, float* scratch) const override;

  /// "implicit GEMM 8x48, lines copied"
  std::string algorithm() const override;

 private:
  /// A stretch of computed pixels in one line: where its first patch and its first pixel are.
  struct Stretch {
    const float* patch;
    float* result;
  };
  struct Tile {
    Range columns;  ///< of computed pixels
    Range units;    ///< panels of all groups
  };

  void choose_parts();
  bool packs_in_tasks() const { return line_parts_ * column_parts_ == 1; }
  void pack_panel(const float* weights, int group, int block, int panel) const;
  void list_stretches(std::size_t first_line, int lines, Range columns, const float* source, float* result, float* scratch,
                      Stretch* stretches) const;
  void multiply(const Stretch* stretches, int lines, const Tile& tile) const;
  void multiply_panel(const Stretch* stretches, int lines, int pixels, int group, int block, int panel) const;
  void scatter_blocks(std::size_t line, Range columns, const float* values, float* result) const;
  std::size_t result_pixel(std::size_t line, int column) const;

  const Isa& isa_;
  int merged_;  ///< groups that share the vectors of one wider group, with zeros between them
  CorrelationShape shape_;
  CorrelationWeights weights_;
  SourceLines source_lines_;
  int vectors_;
  PackedShape packed_;
  AlignedFloats start_;
  const float* unpacked_ = nullptr;  ///< weights that tasks have to pack
  std::size_t lines_;
  std::size_t line_parts_ = 0, column_parts_ = 1, channel_parts_ = 1;
  std::size_t copies_offset_ = 0, values_offset_ = 0, stretches_offset_ = 0;
  ScratchLayout scratch_;
};

}  // namespace mpsnn::cpu
