// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <numeric>

#include "backends/cpu/convolution_kernels.hpp"
#include "backends/cpu/source_lines.hpp"
#include "backends/cpu/winograd.hpp"
#include "core/parallel.hpp"

namespace mpsnn::cpu {
namespace {

/// Pixels in one chain of additions. With AVX-512, 128 rows of a panel of the incoming gradient take 32 KiB.
constexpr int kChain = 128;
/// Floats of copied lines that a thread prepares at a time: 192 KiB.
constexpr std::size_t kCopiedFloats = 49152;
/// Output channels of a task: a chain of the incoming gradient takes 128 KiB. So few that rows are read in whole vectors where they lie:
/// what follows them is multiplied too, and not stored.
constexpr int kOutputs = 256, kNarrowOutputs = 64;
/// Tasks wanted, unless they would have less than some 10 microseconds of work; parts of the sum over pixels have at least
/// kPartPixels, and their private sums stay below kPartFloats (16 MiB).
constexpr int kMostParts = 32;
constexpr double kPartMultiplyAdds = 1e6;
constexpr std::size_t kPartPixels = 256, kPartFloats = std::size_t(4) << 20;

/// How the work is cut: the sum over lines of windows, the rows of the result (taps and input channels) and its columns (output
/// channels).
struct Cut {
  int lines = 1, rows = 1, columns = 1;
};

/// The cut that costs least: every part of the lines writes and adds up private sums, every part of the rows packs the incoming
/// gradient again, and the last task of a thread may keep the others waiting.
Cut choose_cut(std::size_t lines, std::size_t pixels, int groups, int rows, int columns, std::size_t copied_per_pixel) {
  const double work = double(pixels) * groups * rows * columns;
  const int wanted = static_cast<int>(std::clamp(work / kPartMultiplyAdds, 1.0, double(kMostParts)));
  const double sums = double(groups) * rows * columns;
  Cut best;
  double least = 0;
  for (int parts = 1; parts <= kMostParts && (parts == 1 || rows / parts >= 32); parts *= 2) {
    Cut cut{1, parts, ceil_divide(columns, kOutputs)};
    const std::size_t most = std::min<std::size_t>({lines, pixels / kPartPixels, static_cast<std::size_t>(kPartFloats / sums)});
    cut.lines = std::clamp(ceil_divide(wanted, parts * cut.columns), 1, static_cast<int>(std::max<std::size_t>(1, most)));
    const int tasks = cut.lines * cut.rows * cut.columns;
    const double moved = (cut.lines == 1 ? 1 : 3 * cut.lines) * sums +
                         double(pixels) * cut.rows * (double(groups) * columns + double(cut.columns) * copied_per_pixel);
    const double cycles = 0.25 * moved + work / 32 * (1 + 1.0 / tasks);
    if (least == 0 || cycles < least) least = cycles, best = cut;
  }
  return best;
}

/// sum[k][o] = sum over pixels of patch[p][k] * E[p][o], read from the source where it lies. Tasks own disjoint tiles of the sums,
/// or of a part's private sums.
class WeightGradientKernel final : public Kernel {
 public:
  WeightGradientKernel(ConvolutionGeometry geometry, WeightLayout layout, int images, bool is_transposed)
      : isa_(isa_for_columns(geometry.output_channels / geometry.groups)),
        bias_(geometry, images, is_transposed),
        is_exchanged_(exchange(geometry, layout, images)),
        incoming_(is_transposed != is_exchanged_ ? 1 : 0),
        geometry_(geometry),
        layout_(layout),
        images_(images),
        source_(geometry.window, geometry.input_channels, geometry.groups, geometry.edge_mode),
        outputs_(geometry.output_channels / geometry.groups),
        padded_(round_up(outputs_, isa_.lanes)),
        depth_(source_.depth()),
        pixel_row_(geometry.output_channels),
        columns_(std::max(0, geometry.window.x.output)),
        lines_(std::size_t(std::max(0, images)) * std::max(0, geometry.window.y.output)) {
    choose_parts();
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }

  std::string algorithm() const override {
    std::string text = "implicit GEMM " + std::to_string(isa_.piece_rows[vectors_ - 1]) + "x" +
                       std::to_string(vectors_ * isa_.lanes) + " " + isa_.name;
    if (source_.copies()) text += ", lines copied";
    return cut_.lines > 1 ? text + ", sum in " + std::to_string(cut_.lines) + " parts" : text;
  }

  void run(const KernelCall& call) override {
    float *scratch = static_cast<float*>(call.scratch), *weights = call.output<float>(0);
    // Its pixels are summed while they are in the cache, where a task reads all of their channels.
    float* bias = weights && incoming_ == 0 && cut_.columns == 1 ? call.output<float>(1) : nullptr;
    if (!bias) bias_.run(call, scratch + bias_offset_);
    if (!weights) return;
    const float *incoming = call.input<float>(incoming_), *source = call.input<float>(1 - incoming_);
    float* sums = writes_in_place_ ? weights : scratch + sums_offset_;
    parallel_for(std::size_t(cut_.lines) * cut_.rows * cut_.columns, [&](std::size_t task, int thread) {
      run_task(task, incoming, source, sums, bias ? scratch + bias_offset_ : nullptr, scratch + threads_offset_ + thread * thread_.floats());
    });
    if (bias) pixel_row_.fold(scratch + bias_offset_, cut_.lines, bias);
    if (writes_in_place_) return;
    const std::size_t strips = ceil_divide(outputs_, kStrip), blocks = ceil_divide(depth_, kStripRows);
    parallel_for(geometry_.groups * strips * blocks, [&](std::size_t task, int) {
      store_strip(static_cast<int>(task / blocks / strips), static_cast<int>(task / blocks % strips) * kStrip,
                  static_cast<int>(task % blocks) * kStripRows, sums, weights);
    });
  }

 private:
  static constexpr int kStrip = 16, kStripRows = 128;

  /// A chain: some lines of windows, or a part of one line.
  struct Chain {
    const float* const* patches;  ///< per line
    int lines;
    Range columns;
    std::size_t first_pixel;
    int pixels() const { return lines * columns.size(); }
  };

  /// Where each pixel sees itself alone, all pixels are one line, and the two images may change places: the gradient then comes out
  /// in the order of the weights.
  static bool exchange(ConvolutionGeometry& geometry, WeightLayout& layout, int& images) {
    const Axis &y = geometry.window.y, &x = geometry.window.x;
    const auto is_pointwise = [](const Axis& a) { return a.kernel == 1 && a.stride == 1 && a.before == 0 && a.input == a.output; };
    if (!is_pointwise(y) || !is_pointwise(x)) return false;
    const int pixels = std::max(0, images) * y.input * x.input;
    geometry.window = {Axis{}, Axis{pixels, pixels}};
    images = 1;
    if (layout.input != 1 || geometry.input_channels / geometry.groups % isa().lanes != 0) return false;
    std::swap(geometry.input_channels, geometry.output_channels);
    std::swap(layout.input, layout.output);
    return true;
  }

  void choose_parts() {
    const std::size_t pixels = lines_ * columns_;
    const bool is_one_line = geometry_.window.y.kernel <= 1 && images_ <= 1 && geometry_.window.y.output == 1;
    chain_columns_ = ceil_divide(columns_, std::max(1, ceil_divide(columns_, kChain)));
    chain_lines_ = std::max(1, kChain / std::max(1, columns_));
    vectors_ = best_vectors(isa_, std::clamp(source_.piece_depth(), 1, 1000), outputs_, std::min<int>(kChain, std::max<int>(1, pixels)));
    const bool is_flat = is_one_line && columns_ > chain_columns_;
    units_ = is_flat ? ceil_divide(columns_, chain_columns_) : lines_;
    cut_ = choose_cut(units_, pixels, geometry_.groups, depth_, padded_, source_.copies() ? geometry_.input_channels : 0);
    is_flat_ = is_flat;
    writes_in_place_ = cut_.lines == 1 && is_exchanged_ && layout_.output == 1 && outputs_ == padded_;

    const int panel = vectors_ * isa_.lanes;
    packs_ = geometry_.groups > 1 || (outputs_ != panel && outputs_ > kNarrowOutputs);
    block_lines_ = is_flat_ ? 1 : chain_lines_;
    if (!is_flat_ && source_.copies())
      while (source_.copied_floats(2 * block_lines_, columns_) <= kCopiedFloats && std::size_t(block_lines_) < lines_) block_lines_ *= 2;
    if (lines_ > 0 && columns_ > 0) copies_offset_ = thread_.add(source_.copied_floats(block_lines_, is_flat_ ? chain_columns_ : columns_));
    lines_offset_ = thread_.add(block_lines_ * sizeof(const float*) / sizeof(float));
    if (packs_ || outputs_ != padded_) packed_offset_ = thread_.add(std::size_t(kChain) * round_up(std::min(padded_, kOutputs), panel));
    threads_offset_ = scratch_.add(round_up<std::size_t>(thread_.floats(), 16) * max_thread_count());
    bias_offset_ = scratch_.add(std::max<std::size_t>(bias_.scratch_floats(), std::size_t(cut_.lines) * pixel_row_.floats));
    if (!writes_in_place_) sums_offset_ = scratch_.add(part_floats() * cut_.lines);
  }

  std::size_t part_floats() const { return std::size_t(geometry_.groups) * depth_ * padded_; }
  float* sum(float* sums, int group, int row) const {
    if (writes_in_place_) return layout_.at(sums, group) + row * layout_.input;
    return sums + (std::size_t(group) * depth_ + row) * padded_;
  }
  std::size_t sum_stride() const { return writes_in_place_ ? layout_.input : padded_; }

  void run_task(std::size_t task, const float* incoming, const float* source, float* sums, float* bias_sums, float* scratch) const {
    const int row_part = static_cast<int>(task % cut_.rows), column_part = static_cast<int>(task / cut_.rows % cut_.columns);
    const std::size_t part = task / cut_.rows / cut_.columns;
    const Range rows{static_cast<int>(part_begin(depth_, row_part, cut_.rows)), static_cast<int>(part_begin(depth_, row_part + 1, cut_.rows))};
    const int panels = padded_ / isa_.lanes;
    const Range columns{static_cast<int>(part_begin(panels, column_part, cut_.columns)) * isa_.lanes,
                        static_cast<int>(part_begin(panels, column_part + 1, cut_.columns)) * isa_.lanes};
    if (!writes_in_place_) sums += part * part_floats();
    const std::size_t begin = part_begin(units_, part, cut_.lines), end = part_begin(units_, part + 1, cut_.lines);
    bias_sums = bias_sums && row_part == 0 ? bias_sums + part * pixel_row_.floats : nullptr;
    if (bias_sums) std::fill_n(bias_sums, pixel_row_.floats, 0.0f);
    if (begin == end || columns_ == 0) return clear(sums, rows, columns);
    auto** patches = reinterpret_cast<const float**>(scratch + lines_offset_);
    bool is_first = true;
    for (std::size_t unit = begin; unit < end; unit += block_lines_) {
      const int lines = static_cast<int>(std::min<std::size_t>(block_lines_, end - unit));
      Range all{0, columns_};
      if (is_flat_) all = {static_cast<int>(part_begin(columns_, unit, units_)), static_cast<int>(part_begin(columns_, unit + 1, units_))};
      source_.prepare(source, is_flat_ ? 0 : unit, lines, all, scratch + copies_offset_, patches);
      for (int line = 0; line < lines; line += chain_lines_) {
        for (int column = all.begin; column < all.end; column += chain_columns_) {
          const Chain chain{patches + line, std::min(chain_lines_, lines - line), {column, std::min(all.end, column + chain_columns_)},
                            is_flat_ ? column : (unit + line) * columns_ + column};
          ColumnProduct product;
          look_ahead(chain, rows, columns, incoming, source, product);
          product.overwrites = is_first;
          add_chain(chain, column - all.begin, rows, columns, incoming, sums, scratch, product);
          if (bias_sums) pixel_row_.add(incoming + chain.first_pixel * geometry_.output_channels, chain.pixels(), bias_sums);
          is_first = false;
        }
      }
    }
  }

  /// The next chain's pixels of both images lie behind this chain's: they are fetched meanwhile. The source's share of a chain is as
  /// large as the ratio of the images.
  void look_ahead(const Chain& chain, Range rows, Range columns, const float* incoming, const float* source, ColumnProduct& product) const {
    const double first = double(chain.first_pixel) + chain.pixels();
    const double source_floats = double(images_) * geometry_.window.y.input * geometry_.window.x.input * geometry_.input_channels / (lines_ * columns_);
    const double floats[2] = {double(geometry_.output_channels), source_floats};
    const float* images[2] = {incoming, source};
    const double tiles = double(rows.size()) * columns.size() * geometry_.groups / (isa_.piece_rows[vectors_ - 1] * vectors_ * isa_.lanes);
    for (int i = 0; i < 2; ++i) {
      product.ahead.place[i] = reinterpret_cast<const char*>(images[i] + static_cast<std::size_t>(first * floats[i]));
      product.ahead.bytes[i] = static_cast<std::size_t>(std::min(64.0, 16 * floats[i] / std::max(1.0, tiles) + 1));
    }
  }

  void clear(float* sums, Range rows, Range columns) const {
    for (int group = 0; group < geometry_.groups; ++group)
      for (int row = rows.begin; row < rows.end; ++row) std::fill_n(sum(sums, group, row) + columns.begin, columns.size(), 0.0f);
  }

  /// Adds the products of a chain's pixels; its first patch is `skipped` columns behind patches[0].
  void add_chain(const Chain& chain, int skipped, Range rows, Range columns, const float* incoming, float* sums, float* scratch,
                 ColumnProduct& product) const {
    product.lines = chain.patches;
    product.line_count = chain.lines;
    product.pixels = chain.columns.size();
    product.a_stride = source_.stride();
    product.c_stride = sum_stride();
    const int panel = vectors_ * isa_.lanes, pixels = chain.pixels();
    float* packed = scratch + packed_offset_;
    // Whole vectors must not reach behind the image's last pixel.
    const std::size_t last_row = (chain.first_pixel + pixels - 1) * outputs_, floats = lines_ * columns_ * outputs_;
    const bool packs = packs_ || last_row + padded_ > floats;
    for (int group = 0; group < geometry_.groups; ++group) {
      const float* from = incoming + chain.first_pixel * geometry_.output_channels + std::ptrdiff_t(group) * outputs_;
      if (packs) pack(from, pixels, columns, packed);
      for (int column = columns.begin; column < columns.end; column += panel) {
        const int width = std::min(panel, columns.end - column);
        product.b = packs ? packed + std::ptrdiff_t(column - columns.begin) * pixels : from + column;
        product.b_stride = packs ? width : outputs_;
        add_rows(product, group, skipped * static_cast<std::ptrdiff_t>(product.a_stride), rows, column, width / isa_.lanes, sums);
      }
    }
  }

  /// Pixel by pixel, as they lie in memory, into panels of `pixels` rows.
  void pack(const float* from, int pixels, Range columns, float* packed) const {
    const int panel = vectors_ * isa_.lanes;
    for (int pixel = 0; pixel < pixels; ++pixel, from += geometry_.output_channels) {
      float* to = packed;
      for (int column = columns.begin; column < columns.end; column += panel) {
        const int width = std::min(panel, columns.end - column);
        copy_padded(from + column, std::min(width, outputs_ - column), to + std::ptrdiff_t(pixel) * width, width);
        to += std::ptrdiff_t(width) * pixels;
      }
    }
  }

  /// Vectors of 16 floats are copied one by one: runs are too short for a call of memcpy.
  static void copy_padded(const float* from, int used, float* to, int width) {
    int i = 0;
    for (; i + 16 <= used; i += 16) std::memcpy(to + i, from + i, 16 * sizeof(float));
    for (; i < used; ++i) to[i] = from[i];
    for (; i < width; ++i) to[i] = 0;
  }

  void add_rows(ColumnProduct& product, int group, std::ptrdiff_t offset, Range rows, int column, int vectors, float* sums) const {
    const int piece_depth = source_.piece_depth(), most = isa_.piece_rows[vectors - 1];
    for (int first = rows.begin; first < rows.end;) {
      const int piece = first / piece_depth, last = std::min(rows.end, (piece + 1) * piece_depth);
      const int tiles = ceil_divide(last - first, most);
      for (int tile = 0; tile < tiles; ++tile) {
        const int row = first + static_cast<int>(part_begin(last - first, tile, tiles));
        const int count = first + static_cast<int>(part_begin(last - first, tile + 1, tiles)) - row;
        product.offset = offset + source_.pieces()[piece] + std::ptrdiff_t(group) * source_.group_channels() + (row - piece * piece_depth);
        product.c = sum(sums, group, row) + column;
        isa_.sum_tiles[vectors - 1][count - 1](product);
      }
      first = last;
    }
  }

  /// Adds the parts of some rows and columns up in their order, and stores them where the weights' layout wants them.
  void store_strip(int group, int first_output, int first_row, float* sums, float* weights) const {
    alignas(64) float strip[kStripRows * kStrip];
    const int rows = std::min(kStripRows, depth_ - first_row), count = std::min(kStrip, outputs_ - first_output);
    for (int row = 0; row < rows; ++row) {
      const float* from = sum(sums, group, first_row + row) + first_output;
      float* to = strip + row * kStrip;
      std::copy_n(from, count, to);
      for (int part = 1; part < cut_.lines; ++part) {
        from += part_floats();
        for (int o = 0; o < count; ++o) to[o] += from[o];
      }
    }
    const int inputs = geometry_.input_channels / geometry_.groups, taps_x = geometry_.window.x.kernel;
    float* to = layout_.at(weights, group) + first_output * layout_.output;
    if (layout_.input == 1 && layout_.x == inputs && layout_.y == std::ptrdiff_t(taps_x) * inputs)
      return pack_rows(strip, 1, kStrip, count, rows, to + first_row, static_cast<int>(layout_.output), 0);
    for (int row = 0; row < rows; ++row) {
      const int k = first_row + row, tap = k / inputs;
      float* weight = to + tap / taps_x * layout_.y + tap % taps_x * layout_.x + k % inputs * layout_.input;
      for (int o = 0; o < count; ++o) weight[o * layout_.output] = strip[row * kStrip + o];
    }
  }

  const Isa& isa_;
  BiasGradient bias_;
  bool is_exchanged_;
  int incoming_;  ///< the operand whose channels are the columns of the sums
  ConvolutionGeometry geometry_;
  WeightLayout layout_;
  int images_;
  SourceLines source_;
  int outputs_, padded_, depth_;
  PixelRow pixel_row_;  ///< of the incoming gradient
  int columns_;
  std::size_t lines_;
  Cut cut_;
  bool is_flat_ = false, writes_in_place_ = false, packs_ = true;
  std::size_t units_ = 0;  ///< what is shared out: lines, or chains of the one line
  int vectors_ = 1, chain_lines_ = 1, chain_columns_ = 1, block_lines_ = 1;
  std::size_t copies_offset_ = 0, lines_offset_ = 0, packed_offset_ = 0;  // of a thread
  std::size_t threads_offset_ = 0, bias_offset_ = 0, sums_offset_ = 0;
  ScratchLayout scratch_, thread_;
};

}  // namespace

std::unique_ptr<Kernel> make_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                             bool is_transposed, Precision precision) {
  const ConvolutionProblem problem{.pass = ConvolutionPass::weight_gradient, .geometry = geometry, .images = images, .precision = precision,
                                   .has_natural_weights = !is_transposed && layout == natural_layout(geometry)};
  const ConvolutionChoice choice = choose(problem);
  if (choice.algorithm == ConvolutionAlgorithm::direct)
    return explain(make_depthwise_weight_gradient(geometry, layout, images, is_transposed), choice);
  if (choice.algorithm == ConvolutionAlgorithm::winograd)
    return explain(make_winograd_weight_gradient(geometry, layout, images, is_transposed, precision), choice);
  if (choice.algorithm == ConvolutionAlgorithm::patches) return explain(make_patches(problem), choice);
  if (choice.uses_matrix_unit) return explain(make_matrix_unit_weight_gradient(geometry, layout, images, is_transposed), choice);
  return explain(std::make_unique<WeightGradientKernel>(geometry, layout, images, is_transposed), choice);
}

static std::size_t pixel_sum_parts(std::size_t pixels) { return std::clamp<std::size_t>(pixels / 2048, 1, 64); }

std::size_t pixel_sum_floats(std::size_t pixels, int channels) { return pixel_sum_parts(pixels) * PixelRow(channels).floats; }

void sum_pixels(const float* values, std::size_t pixels, int channels, float* partial, float* result) {
  constexpr std::size_t kChain = 256;
  const std::size_t parts = pixel_sum_parts(pixels);
  const PixelRow row(channels);
  parallel_for(parts, [&](std::size_t part, int) {
    float* sum = partial + part * row.floats;
    std::fill_n(sum, row.floats, 0.0f);
    const std::size_t end = part_begin(pixels, part + 1, parts), chain = kChain * row.pixels;
    for (std::size_t pixel = part_begin(pixels, part, parts); pixel < end; pixel += chain)
      row.add(values + pixel * channels, std::min(chain, end - pixel), sum);
  });
  row.fold(partial, parts, result);
}

PixelRow::PixelRow(int channels) : channels(channels) {
  constexpr int kMostFloats = 1024;
  const int whole = std::lcm(channels, isa().lanes);
  if (channels > 0 && whole <= kMostFloats) pixels = whole / channels;
  floats = pixels * channels;
}

void PixelRow::add(const float* values, std::size_t count, float* sums) const {
  const std::size_t rows = count / pixels, rest = count % pixels;
  isa().sum_rows(floats, rows, values, floats, sums);
  if (rest > 0) isa().sum_rows(channels, rest, values + rows * floats, channels, sums);
}

void PixelRow::fold(const float* sums, std::size_t parts, float* result) const {
  std::copy_n(sums, channels, result);
  isa().sum_rows(channels, parts * pixels - 1, sums + channels, channels, result);
}

BiasGradient::BiasGradient(const ConvolutionGeometry& geometry, int images, bool is_transposed)
    : channels_(is_transposed ? geometry.input_channels : geometry.output_channels) {
  const ConvolutionProblem problem{.geometry = geometry, .images = images};
  pixels_ = is_transposed ? problem.input_pixels() : problem.output_pixels();
}

void BiasGradient::run(const KernelCall& call, float* scratch) const {
  if (float* result = call.output<float>(1)) sum_pixels(call.input<float>(0), pixels_, channels_, scratch, result);
}

}  // namespace mpsnn::cpu
