// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "backends/cpu/convolution_geometry.hpp"
#include "backends/cpu/gemm.hpp"
#include "backends/cpu/im2col.hpp"
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

/// A correlation as a product of matrices: blocks of patches times packed weights. Work is cut into tasks by the shape alone.
class Correlation {
 public:
  Correlation(const CorrelationShape& shape, CorrelationWeights weights);

  /// Packs the weights, and the bias when there is one.
  void pack(const float* weights, const float* bias);

  std::size_t task_count() const { return pixel_parts_ * column_parts_; }
  /// Private scratch of a thread that runs tasks.
  std::size_t scratch_floats() const { return scratch_.floats(); }
  /// True when a task computes all channels of its pixels, so that it can apply the neuron to them.
  bool has_whole_pixels() const { return column_parts_ == 1; }
  /// Computes part of `result`; `neuron` may be null.
  void run_task(std::size_t task, const float* source, float* result, const NNNeuronDescriptor* neuron, float* scratch) const;

  bool reads_in_place() const { return a_stride_ != 0; }

 private:
  void choose_parts();
  void pack_panel(const float* weights, int group, int block, int panel);
  void multiply_group(int group, Range panels, std::size_t first_pixel, int pixels, const float* source, float* result,
                      std::size_t stride, float* scratch) const;
  void scatter(std::size_t first_pixel, int pixels, Range channels, const float* values, float* result) const;
  void scatter_pixel(int image, int i, int j, Range channels, const float* values, float* result) const;

  const Isa& isa_;
  CorrelationShape shape_;
  CorrelationWeights weights_;
  Patches patches_;
  PackedShape packed_;
  AlignedFloats packed_weights_, start_;
  std::size_t pixels_, pixel_parts_ = 0, column_parts_ = 1;
  std::size_t a_stride_ = 0;       ///< floats between patches that are read where they lie; 0 when they are gathered
  std::size_t gather_stride_ = 0;  ///< floats between gathered patches
  bool is_scattered_;              ///< computed pixels are not neighbours in the result
  std::size_t patches_offset_ = 0, values_offset_ = 0;
  ScratchLayout scratch_;
};

}  // namespace mpsnn::cpu
