// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/cpu/convolution_geometry.hpp"
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

struct CorrelationPart {
  CorrelationShape shape;
  CorrelationWeights weights;
};

/// What a task does with neighbouring pixels of the result, all channels of them, while they are in the cache.
class FinishPixels {
 public:
  virtual void operator()(float* values, std::size_t pixels) = 0;

 protected:
  ~FinishPixels() = default;
};

/// Correlations as products of matrices. The left one, the patches under the windows, is never written down: products read the source,
/// or padded copies of the few lines that a task needs. Work is cut into tasks by the shape alone.
class Correlation {
 public:
  virtual ~Correlation() = default;
  /// Packed weights lie in memory of packed_floats() that the caller gives before pack(), and before each run that relies on it.
  virtual std::size_t packed_floats() const = 0;
  void use_memory(float* packed) { packed_weights_ = packed; }
  /// Packs the weights, and the bias when there is one; where each panel serves one task only, that task packs it.
  virtual void pack(const float* weights, const float* bias) = 0;
  /// The weights of the next run are those packed before.
  virtual void keep_weights() {}
  virtual std::size_t task_count() const = 0;
  /// Private scratch of a thread that runs tasks.
  virtual std::size_t scratch_floats() const = 0;
  /// True when a task computes all channels of its pixels and these are neighbours, so that it can finish them.
  virtual bool has_whole_pixels() const = 0;
  /// Computes part of `result`; `finish`, which may be null, is given every pixel.
  virtual void run_task(std::size_t task, const float* source, float* result, FinishPixels* finish, float* scratch) const = 0;
  virtual std::string algorithm() const = 0;

 protected:
  float* packed_weights_ = nullptr;
};

/// Correlations over one source that together compute one image: on the matrix unit all at once, else one for each part.
std::vector<std::unique_ptr<Correlation>> make_correlations(std::vector<CorrelationPart> parts);

/// Where each pixel sees itself alone, all pixels of all images are one line.
CorrelationShape in_one_line(CorrelationShape shape);

}  // namespace mpsnn::cpu
