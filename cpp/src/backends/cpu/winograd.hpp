// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <vector>

#include "backends/cpu/convolution_kernels.hpp"

/// Winograd's convolution for windows of 3 x 3 or 5 x 5 taps and stride 1: tiles of the image and the weights are transformed so
/// that a convolution of a tile becomes products at each of its positions, which are matrix products over the channels. F(4 x 4,
/// 3 x 3) needs a quarter of the multiplications, F(2 x 2, 5 x 5) and F(2 x 2, 3 x 3) 36 % and 44 %.
namespace mpsnn::cpu {

/// The transforms for a kernel size; those of F(2 x 2, 3 x 3) where precision is strict. Null when there are none.
const WinogradTransforms* winograd_transforms(int taps, Precision precision);

/// How the tiles of an axis lie: with dilation, each phase of the pixels has tiles of its own.
struct TileAxis {
  struct Tile {
    int first;   ///< output pixel; the next ones follow in steps of the dilation
    int count;   ///< output pixels, at most those of a tile
    int origin;  ///< first input pixel, may lie outside
    Range inside;  ///< pixels of the tile that lie on the image
  };
  std::vector<Tile> tiles;
  int input, output, dilation;

  TileAxis(const Axis& axis, const WinogradTransforms& transforms);
};

/// The tiles of a batch, numbered through all images.
class Tiles {
 public:
  Tiles(const Window& window, int images, const WinogradTransforms& transforms);
  std::size_t count() const { return count_; }
  /// Of the results of all images.
  std::size_t pixels() const { return images_ * y_.output * x_.output; }

  /// v := the transformed tiles first, first + 1, ... of an image's channels, each `tile_step` floats behind the one before.
  void transform_inputs(const WinogradTransforms& transforms, const float* image, int image_channels, int channels,
                        std::size_t first, int tiles, float* v, std::size_t tile_step, std::size_t step, std::size_t panel_step) const;
  /// The same for the tiles of the incoming gradient.
  void spread(const WinogradTransforms& transforms, const float* incoming, int image_channels, int channels, std::size_t first,
              int tiles, float* z, std::size_t tile_step, std::size_t step, std::size_t panel_step) const;
  /// The same two for a step of a split product, at most split::kDepth tiles.
  void place_inputs(const float* image, int image_channels, std::size_t first, int tiles, SplitTransform& transform) const;
  void place_results(const float* incoming, int image_channels, std::size_t first, int tiles, SplitTransform& transform) const;
  /// Stores the result's pixels of those tiles.
  void transform_outputs(const WinogradTransforms& transforms, const float* m, std::size_t tile_step, std::size_t step,
                         const float* bias, int channels, std::size_t first, int tiles, float* result, int result_channels) const;
  /// Calls body(first pixel, pixels) for each run of neighbouring result pixels of a tile.
  template <class Body>
  void for_each_run(std::size_t first, int tiles, Body&& body) const {
    for (int t = 0; t < tiles; ++t) {
      const Place place = place_of(first + t);
      for (int i = 0; i < place.y->count; ++i) {
        const std::size_t line = place.image * y_.output + place.y->first + i * y_.dilation;
        if (x_.dilation == 1) {
          body(line * x_.output + place.x->first, place.x->count);
        } else {
          for (int j = 0; j < place.x->count; ++j) body(line * x_.output + place.x->first + j * x_.dilation, 1);
        }
      }
    }
  }

  struct Place {
    std::size_t image;
    const TileAxis::Tile *y, *x;
  };
  Place place_of(std::size_t tile) const;

 private:

  TileAxis y_, x_;
  std::size_t images_, count_;
};

/// Weights of a Winograd convolution: strides from result to result channel, tap to tap, source to source channel.
struct WinogradWeights {
  std::ptrdiff_t offset, group, result, y, x, source;
};

/// How a forward pass or data gradient is computed: in vectors; in the matrix unit, with transformed weights that are stored, 216 bytes for
/// each pair of channels; or there, with weights that are transformed on the way.
enum class WinogradWay { vectors, stored, deep };
/// Tiles of a task at most, in whole rows of the unit: where weights are stored ...
int stored_tiles(int positions, int sources, int results);
/// ... and where they are not.
constexpr int kDeepTiles = 64;

struct WinogradPlan {
  WinogradWay way = WinogradWay::vectors;
  double cycles = 0;  ///< of one core, estimated
};
/// The way that takes the least time for a group with so many channels.
WinogradPlan plan_winograd(const WinogradTransforms& transforms, int sources, int results, std::size_t tiles);

/// Where positions of `count` floats begin: not a multiple of 4 KiB apart, else stores of all of them meet in a few lines of the
/// first-level cache.
constexpr std::size_t winograd_step(std::size_t count) { return round_up<std::size_t>(count, 16) | 16; }

/// Fetches what will be written soon. Stores wait for their lines one after another; fetched a tile ahead, the lines arrive together:
/// a tenth of a forward pass, a fifth of a weight gradient.
inline void prefetch_for_writing(const float* values, int count) {
  for (int i = 0; i < count; i += 16) __builtin_prefetch(values + i, 1);
}

/// c (+)= a * b for one position, where b is one panel: `depth` rows of `columns` columns behind one another, whole vectors. Meanwhile
/// what the next product reads is fetched: it comes from the second-level cache, in stretches too short for other prefetchers.
struct PanelProduct {
  int rows, depth;
  const float* a;
  std::size_t a_stride;
  const float* b;
  int columns;
  float* c;
  std::size_t c_stride;
  bool overwrites;
  const float *next_a, *next_b;
};
/// a(i, k) is a[i * a_stride + k], or ...
void multiply_panel(const Isa& isa, const PanelProduct& panel);
/// ... a[k * a_stride + i].
void multiply_panel_transposed(const Isa& isa, const PanelProduct& panel);

/// The filter of one output channel of a weight gradient, from its sums at the positions, `step` floats apart; whole vectors of them.
/// `w` holds taps * taps * as many floats. `streams` where weights are more than the second-level cache holds: storing them past it does not
/// fetch them first, a fifth of a layer of 1024 channels.
void gather_filter(const WinogradTransforms& transforms, const float* u, std::size_t step, int inputs, float* w, const WeightLayout& layout,
                   float* filter, bool streams = false);

std::unique_ptr<Kernel> make_winograd_forward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                              const Epilogue& epilogue, Precision precision);
std::unique_ptr<Kernel> make_winograd_data_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                    const Epilogue& epilogue, Precision precision);
std::unique_ptr<Kernel> make_winograd_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                      bool is_transposed, Precision precision);
/// True where it uses the matrix unit: with fewer channels, splitting numbers takes longer than the products that it makes faster.
bool splits_winograd_weight_gradient(const ConvolutionGeometry& geometry);
/// That one.
std::unique_ptr<Kernel> make_split_winograd_weight_gradient(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry,
                                                            const WeightLayout& layout, int images, bool is_transposed);
double split_winograd_weight_gradient_cycles(const WinogradTransforms& transforms, const ConvolutionGeometry& geometry, int images);

}  // namespace mpsnn::cpu
