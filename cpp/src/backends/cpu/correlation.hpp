// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "backends/cpu/convolution_geometry.hpp"
#include "backends/cpu/gemm.hpp"
#include "backends/cpu/source_lines.hpp"
#include "mpsnn/descriptors.hpp"

namespace mpsnn::cpu {

/// A sliding window product: what a convolution is, and each phase of a data gradient.
struct CorrelationShape {
  Window window;  ///< from source pixels to the pixels computed
  int images = 0, source_channels = 1, result_channels = 1, groups = 1;
  ImageEdgeMode edge_mode = ImageEdgeMode::Zero;
  /// Computed pixel (i, j) is pixel (first_y + i * step_y, first_x + j * step_x) of the result, with sub_pixel_scale r > 1 a
  /// block of r x r pixels from (i * r, j * r) on.
  int result_height = 1, result_width = 1, first_y = 0, first_x = 0, step_y = 1, step_x = 1, sub_pixel_scale = 1;
};

/// Where the weights of a correlation come from: strides within a group, and the weights' tap under each tap of the window.
struct CorrelationWeights {
  std::ptrdiff_t offset, group, result, y, x, source;
  std::vector<int> taps_y, taps_x;
};

/// A correlation as a product of matrices. The left one, the patches under the windows, is never written down: tiles read the
/// source, or padded copies of the few lines that a task needs. Work is cut into tasks by the shape alone.
class Correlation {
 public:
  Correlation(const CorrelationShape& shape, CorrelationWeights weights);

  /// Packs the weights, and the bias when there is one; where each panel serves one task only, that task packs it.
  void pack(const float* weights, const float* bias);
  /// The weights of the next run are those packed before.
  void keep_weights() { unpacked_ = nullptr; }

  std::size_t task_count() const { return line_parts_ * column_parts_ * channel_parts_; }
  /// Private scratch of a thread that runs tasks.
  std::size_t scratch_floats() const { return scratch_.floats(); }
  /// True when a task computes all channels of its pixels and these are neighbours, so that it can apply the neuron to them.
  bool has_whole_pixels() const { return channel_parts_ == 1 && shape_.step_x == 1; }
  /// Computes part of `result`; `neuron` may be null.
  void run_task(std::size_t task, const float* source, float* result, const NNNeuronDescriptor* neuron, float* scratch) const;

  /// "implicit GEMM 8x48, lines copied"
  std::string algorithm() const;

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
  AlignedFloats packed_weights_, start_;
  const float* unpacked_ = nullptr;  ///< weights that tasks have to pack
  std::size_t lines_;
  std::size_t line_parts_ = 0, column_parts_ = 1, channel_parts_ = 1;
  std::size_t copies_offset_ = 0, values_offset_ = 0, stretches_offset_ = 0;
  ScratchLayout scratch_;
};

}  // namespace mpsnn::cpu
