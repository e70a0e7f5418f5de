// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "backends/cpu/convolution_geometry.hpp"

namespace mpsnn::cpu {

/// The phases of an axis: pixels that the taps share, each of them `shift` steps behind the first. Or every tap has a phase of its own.
struct TapPhases {
  struct Tap {
    int phase, shift;
  };
  struct Phase {
    int first, most_shift;  ///< source pixels behind the window's origin; steps
  };
  std::vector<Phase> phases;
  std::vector<Tap> taps;
  int most_shift = 0;

  TapPhases(const Axis& axis, bool is_shared);
};

/// How a weight gradient is cut for the matrix unit, with the pixels as the depth: the left operand is the source, transposed, the right
/// one the incoming gradient. A line of either takes `pitch` elements, so a tap is a shift of one against the other: the lines of a
/// block and their phases are split once for all taps. Rows of the left operand that begin inside of cache lines take twice as long, so
/// the right operand is there once for each shift modulo 32, unless the products wait for their sums anyway. Where the channels are too
/// few for the rows of a tile ("stacked"), the row under all taps of a line is transposed instead; rows of neighbouring lines are
/// neighbours then, and lines take whole steps: where they are short, lines of several images lie abreast in one step.
struct WeightGradientPlan {
  struct Rows {
    bool is_stacked, is_aligned;
    TapPhases y, x;
    /// Every phase of the lines with every phase of the columns: they are split, and multiplied, one after another.
    int slabs() const { return is_stacked ? 1 : static_cast<int>(y.phases.size() * x.phases.size()); }
    static int shift(const TapPhases::Tap& ky, const TapPhases::Tap& kx, int pitch) { return ky.shift * pitch + kx.shift; }
    /// What the right operand is shifted by; the rest of the left one's shift is in whole steps.
    int variant(int shift) const;
  };

  WeightGradientPlan(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images);

  ConvolutionGeometry geometry;
  WeightLayout layout;
  int images;
  bool is_exchanged = false;                     ///< the two images have changed places
  int real_inputs = 1, real_outputs = 1;         ///< channels of a group ...
  int merged = 1, groups = 1;                    ///< ... of which so many are taken as one,
  int inputs = 1, outputs = 1, padded = 1;       ///< with the channels of all; whole tiles of output channels
  int chunk = 1, pitch = 1;                      ///< windows of a line that are taken together, and their elements
  Rows rows;
  std::vector<int> shifts;                       ///< of the variants of the right operand
  int abreast = 1;                               ///< images whose lines share a step
  bool gathers = false;                          ///< stacked rows are gathered from pixels that are transposed once, not once for each tap
  bool is_direct = false;                        ///< the source is read where it lies
  int lines = 1, block_images = 1;               ///< of a block
  std::size_t blocks = 0;
  int parts = 1, row_parts = 1, column_parts = 1;  ///< of the blocks, of the input channels or groups, and of the output channels
  double cycles = 0;                             ///< of one core

  int taps() const { return geometry.window.y.kernel * geometry.window.x.kernel; }
  int depth() const { return taps() * real_inputs; }
  /// Lines of a phase that the taps need beyond those of the first.
  int shift_lines() const;
  /// Source pixels that the windows of a chunk stand for.
  int line_pixels() const { return (chunk - 1) * geometry.window.x.stride + geometry.window.x.kernel; }

 private:
  void exchange();
  void merge_groups();
  void choose_rows();
  void choose_cut();
  void lay_abreast();
  int pitch_of(const Rows& r) const;
  std::vector<int> shifts_of(const Rows& r) const;
  double source_elements(const Rows& r, int channels) const;
  double product_cycles(const Rows& r) const;
  double left_cycles(const Rows& r) const;
  double split_cycles(const Rows& r) const;
  void choose_block(int row_parts, int column_parts, int& lines, int& images) const;
};

}  // namespace mpsnn::cpu
