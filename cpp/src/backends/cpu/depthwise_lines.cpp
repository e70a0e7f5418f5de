// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>
#include <vector>

#include "backends/cpu/convolution_kernels.hpp"
#include "backends/cpu/loops.hpp"
#include "backends/cpu/neuron.hpp"
#include "core/parallel.hpp"

// Depthwise convolutions with as many output as input channels and zeros outside of the image, and others of groups so narrow that a vector
// holds several: lines of windows that lie inside go
// through the instruction set's kernels as one run, windows over the border one by one, with the taps that they have inside.
namespace mpsnn::cpu {
namespace {

/// Output pixels whose windows lie inside.
Range inner_outputs(const Axis& axis) {
  Range inner{0, 0};
  for (int o = 0; o < axis.output; ++o) {
    if (axis.taps_inside(o).size() != axis.kernel) continue;
    if (inner.size() == 0) inner.begin = o;
    inner.end = o + 1;
  }
  return inner;
}

/// The last vector of channels overlaps the one before it: what both compute is the same.
int first_channel(int vector, int channels) { return std::min(vector * isa().lanes, channels - isa().lanes); }

/// Source pixels that the windows of a line read, outside of the image too.
Range read_pixels(const Axis& axis) {
  return {axis.tap(0, 0), std::max(axis.tap(0, 0), axis.tap(axis.output - 1, axis.kernel - 1) + 1)};
}

/// A vector of channels of an image's last few lines: what the windows read of them behind one another, with zeros outside.
class LineCopies {
 public:
  LineCopies(const Axis& y, const Axis& x) : pixels_(read_pixels(x)), size_(x.input), lines_(std::max(1, y.extent())) {}
  std::size_t line_floats() const { return std::size_t(pixels_.size()) * isa().lanes; }
  std::size_t floats() const { return lines_ * (line_floats() + 16); }

  /// For another image, or another vector of it; `memory` has room for floats().
  void begin(const float* image, std::size_t channels, float* memory) {
    image_ = image;
    channels_ = channels;
    memory_ = memory;
    held_ = reinterpret_cast<int*>(memory + lines_ * line_floats());
    std::fill_n(held_, lines_, -1);
  }

  const float* line(const Isa& isa, int number) {
    float* to = memory_ + number % lines_ * line_floats();
    if (std::exchange(held_[number % lines_], number) == number) return to;
    const Range inside = clip_range(pixels_.begin, pixels_.size(), size_);
    const std::size_t before = inside.size() > 0 ? std::size_t(inside.begin - pixels_.begin) * isa.lanes : 0, count = std::size_t(inside.size()) * isa.lanes;
    std::fill_n(to, before, 0.0f);
    isa.gather_vectors(image_ + (std::size_t(number) * size_ + inside.begin) * channels_, channels_, inside.size(), to + before);
    std::fill(to + before + count, to + line_floats(), 0.0f);
    return to;
  }

 private:
  Range pixels_;
  int size_, lines_;
  const float* image_ = nullptr;
  std::size_t channels_ = 0;
  float* memory_ = nullptr;
  int* held_ = nullptr;
};

/// A depthwise convolution, or one phase of its data gradient: output pixel (i, j) of the axes becomes pixel (y.first + i * y.step,
/// x.first + j * x.step) of the result.
struct DepthwisePass {
  DepthwisePass(Phase vertical, Phase horizontal, const ConvolutionGeometry& geometry, std::ptrdiff_t result_step, std::ptrdiff_t source_step)
      : y(std::move(vertical)),
        x(std::move(horizontal)),
        channels(geometry.input_channels),
        width(geometry.input_channels / geometry.groups),
        weight_result_step(result_step),
        weight_source_step(source_step),
        inner(inner_outputs(x.axis)),
        weights(y.taps.size() * x.taps.size() * (width > 1 ? width * round_up(channels, isa().lanes) : channels)) {
    for (int o = 0; o < x.axis.output; ++o) taps_x.push_back(x.axis.taps_inside(o));
  }

  static constexpr std::size_t kLeastAhead = 1024;  ///< floats of the result that are fetched before they are written

  Phase y, x;
  int channels, width;  ///< of the image and of a group
  std::ptrdiff_t weight_result_step, weight_source_step;  ///< from one weight to that of the next channel of the result's or source's group
  Range inner;
  std::vector<Range> taps_x;
  AlignedFloats weights;  ///< taps x channels; of narrow groups, vectors of channels x taps x width x lanes

  void pack(const float* from, const WeightLayout& layout) {
    const std::size_t taps = y.taps.size() * x.taps.size(), lanes = isa().lanes;
    const std::size_t vectors = width > 1 ? ceil_divide(channels, isa().lanes) : 1, count = width > 1 ? lanes : channels;
    parallel_ranges(vectors * taps, count * width, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t unit = begin; unit < end; ++unit) {
        const int first = width > 1 ? first_channel(static_cast<int>(unit / taps), channels) : 0;
        const std::size_t tap = unit % taps;
        const float* weight = from + layout.offset + y.taps[tap / x.taps.size()] * layout.y + x.taps[tap % x.taps.size()] * layout.x;
        float* to = weights.data() + unit * width * count;
        for (int source = 0; source < width; ++source, weight += weight_source_step)
          for (int c = first; c < first + static_cast<int>(count); ++c) *to++ = weight[c / width * layout.group + c % width * weight_result_step];
      }
    });
  }

  /// Line `i` of an image; `pointers` has room for two for each line of taps.
  void run_line(const Isa& isa, const float* image, int i, const float* start, float* line, bool fetches_line,
                const float** pointers) const {
    const Axis& across = x.axis;
    const Range taps_y = y.axis.taps_inside(i);
    const std::size_t source_line = std::size_t(across.input) * channels;
    DepthwiseRun run;
    run.lines = pointers;
    run.weights = pointers + y.axis.kernel;
    run.pixel_step = std::size_t(across.stride) * channels;
    run.tap_step = std::size_t(across.dilation) * channels;
    run.weight_step = run.channels = channels;
    run.result_step = std::size_t(x.step) * channels;
    run.new_lines = y.axis.stride;
    run.ahead = y.axis.stride * source_line;
    run.result_ahead = fetches_line ? std::max<std::size_t>(kLeastAhead, 8 * run.result_step) : 0;
    run.start = start;
    const auto run_pixels = [&](Range pixels, Range taps) {
      run.line_count = taps.size() > 0 ? taps_y.size() : 0;
      run.taps = taps.size();
      run.pixels = pixels.size();
      run.result = line + std::size_t(x.first + pixels.begin * x.step) * channels;
      for (int t = 0; t < run.line_count; ++t) {
        const int tap = taps_y.begin + t;
        pointers[t] = image + y.axis.tap(i, tap) * source_line + std::size_t(across.tap(pixels.begin, taps.begin)) * channels;
        pointers[y.axis.kernel + t] = weights.data() + (std::size_t(tap) * across.kernel + taps.begin) * channels;
      }
      isa.depthwise_run(run);
    };
    for (int j = 0; j < inner.begin; ++j) run_pixels({j, j + 1}, taps_x[j]);
    if (inner.size() > 0) run_pixels(inner, {0, across.kernel});
    for (int j = inner.end; j < across.output; ++j) run_pixels({j, j + 1}, taps_x[j]);
  }

  /// The same for a vector of channels of narrow groups.
  void run_line_of_vector(const Isa& isa, LineCopies& source, int i, int vector, const float* start, float* line, const float** pointers) const {
    const Axis& across = x.axis;
    const Range taps = y.axis.taps_inside(i);
    const int first = first_channel(vector, channels), lanes = isa.lanes;
    DepthwiseRun run{};
    run.lines = pointers;
    run.weights = pointers + y.axis.kernel;
    run.line_count = across.kernel > 0 ? taps.size() : 0;
    run.taps = across.kernel;
    run.pixels = across.output;
    run.pixel_step = std::size_t(across.stride) * lanes;
    run.tap_step = std::size_t(across.dilation) * lanes;
    run.weight_step = std::size_t(width) * lanes;
    run.result_step = std::size_t(x.step) * channels;
    run.start = start ? start + first : nullptr;
    run.result = line + std::size_t(x.first) * channels + first;
    run.width = width;
    for (int t = 0; t < run.line_count; ++t) {
      pointers[t] = source.line(isa, y.axis.tap(i, taps.begin + t));
      pointers[y.axis.kernel + t] = weights.data() + (std::size_t(vector) * y.axis.kernel + taps.begin + t) * across.kernel * run.weight_step;
    }
    isa.depthwise_run(run);
  }
};

class DepthwiseLines final : public Kernel {
 public:
  DepthwiseLines(std::vector<DepthwisePass> passes, const WeightLayout& layout, int images, int height, int width,
                 const Epilogue& epilogue)
      : isa_(isa()), passes_(std::move(passes)), layout_(layout), images_(std::max(0, images)), height_(height), width_(width),
        channels_(passes_[0].channels),
        stage_(epilogue, images_ * std::max(0, height) * std::max(0, width), passes_[0].channels) {
    for (const DepthwisePass& pass : passes_) {
      most_taps_ = std::max(most_taps_, pass.y.axis.kernel);
      taps_ += pass.y.axis.kernel * pass.x.axis.kernel * pass.width;
    }
    std::size_t copied = 0;
    for (const DepthwisePass& pass : passes_) copied = std::max(copied, pass.width > 1 ? LineCopies(pass.y.axis, pass.x.axis).floats() : 0);
    copy_offset_ = thread_.add(copied);
    pointers_offset_ = thread_.add(2 * most_taps_ * sizeof(const float*) / sizeof(float));
    // Groups of lines that are written together, one for each of the phases below one another.
    groups_ = ceil_divide(height_, step());
    // Neighbouring lines read the same lines: a task has several of them.
    const std::size_t count = images_ * groups_, work = count * width_ * channels_ * taps_;
    tasks_ = std::min(count, std::clamp(work / kTaskWork, kFewestTasks, kMostTasks));
    sums_offset_ = round_up<std::size_t>(thread_.floats(), 16) * max_thread_count();
  }

  std::size_t scratch_bytes() const override { return (sums_offset_ + std::max(stage_.sums_floats(tasks_), stage_.sums_floats_behind())) * sizeof(float); }
  std::string algorithm() const override {
    std::string text = std::string(passes_[0].width > 1 ? "narrow groups" : "depthwise") + ", runs of pixels, " + isa_.name;
    return passes_.size() > 1 ? text + ", " + std::to_string(passes_.size()) + " phases" : text;
  }

  void run(const KernelCall& call) override {
    float* result = call.output<float>(0);
    if (!result) return;
    if (version_.is_stale(call))
      for (DepthwisePass& pass : passes_) pass.pack(call.input<float>(1), layout_);
    const std::size_t line = std::size_t(width_) * channels_;
    if (passes_[0].width > 1) return run_narrow_groups(call, result, line);
    float* sums = static_cast<float*>(call.scratch) + sums_offset_;
    const Range channels{0, channels_};
    const std::size_t count = images_ * groups_;
    stage_.begin(tasks_, sums);
    parallel_for(tasks_, [&](std::size_t task, int thread) {
      const std::size_t begin = part_begin(count, task, tasks_), end = part_begin(count, task + 1, tasks_);
      auto** pointers = reinterpret_cast<const float**>(static_cast<float*>(call.scratch) + thread * thread_.floats() + pointers_offset_);
      for (std::size_t index = begin; index < end; ++index) {
        const std::size_t image = index / groups_;
        const int group = static_cast<int>(index % groups_), first = group * step(), last = std::min(height_, first + step());
        float* to = result + image * height_ * line;
        for (const DepthwisePass& pass : passes_) {
          if (group >= pass.y.axis.output) continue;
          pass.run_line(isa_, call.input<float>(0) + image * source_image(pass), group, call.input<float>(2),
                        to + std::size_t(pass.y.first + group * pass.y.step) * line, count * line * step() > kNearFloats, pointers);
        }
        if (index == begin) stage_.begin_part(task, to + first * line, channels, sums);
        stage_.apply(call, task, to + first * line, std::size_t(last - first) * width_, channels, sums);
      }
    });
    stage_.end(call, tasks_, sums);
  }

 private:
  /// Some 5 microseconds of multiply-adds, and how many tasks there should be.
  static constexpr std::size_t kTaskWork = 250000, kFewestTasks = 2, kMostTasks = 48;
  /// Results that may still be in second-level caches: 4 MiB.
  static constexpr std::size_t kNearFloats = std::size_t(1) << 20;
  int step() const { return passes_[0].y.step; }
  std::size_t source_image(const DepthwisePass& pass) const {
    return std::size_t(std::max(0, pass.y.axis.input)) * std::max(0, pass.x.axis.input) * channels_;
  }

  /// A task has some vectors of channels, one after the other, of some lines: a vector's weights and the copies of the lines stay in the
  /// first-level cache, all lines of a part in the second-level one.
  void run_narrow_groups(const KernelCall& call, float* result, std::size_t line) const {
    const std::size_t vectors = ceil_divide(channels_, isa_.lanes), count = images_ * groups_, pairs = (vectors + 1) / 2;
    const std::size_t parts = std::clamp<std::size_t>(std::max(kMostTasks / pairs, 2 * count * line * step() / kNearFloats), 1, std::max<std::size_t>(1, count));
    parallel_for(pairs * parts, [&](std::size_t task, int thread) {
      const std::size_t part = task / pairs, pair = task % pairs;
      for (std::size_t vector = 2 * pair; vector < std::min(vectors, 2 * pair + 2); ++vector)
        for (const DepthwisePass& pass : passes_)
          run_vector(call, pass, static_cast<int>(vector), part_begin(count, part, parts), part_begin(count, part + 1, parts), result,
                     static_cast<float*>(call.scratch) + thread * thread_.floats());
    });
    if (!stage_.is_empty()) stage_.behind(call, static_cast<float*>(call.scratch) + sums_offset_);
  }

  void run_vector(const KernelCall& call, const DepthwisePass& pass, int vector, std::size_t begin, std::size_t end, float* result,
                  float* scratch) const {
    LineCopies source(pass.y.axis, pass.x.axis);
    std::size_t held = images_;
    for (std::size_t index = begin; index < end; ++index) {
      const std::size_t image = index / groups_;
      const int group = static_cast<int>(index % groups_);
      if (group >= pass.y.axis.output) continue;
      if (std::exchange(held, image) != image)
        source.begin(call.input<float>(0) + image * source_image(pass) + first_channel(vector, channels_), channels_, scratch + copy_offset_);
      pass.run_line_of_vector(isa_, source, group, vector, call.input<float>(2),
                              result + (image * height_ + pass.y.first + group * pass.y.step) * width_ * channels_,
                              reinterpret_cast<const float**>(scratch + pointers_offset_));
    }
  }

  const Isa& isa_;
  std::vector<DepthwisePass> passes_;
  WeightLayout layout_;
  std::size_t images_;
  int height_, width_, channels_, most_taps_ = 0, taps_ = 0, groups_ = 0;
  std::size_t tasks_ = 0, sums_offset_ = 0;
  EpilogueStage stage_;
  PackedVersion version_;
  ScratchLayout thread_;
  std::size_t pointers_offset_ = 0, copy_offset_ = 0;
};

/// Parts of whole lines of the incoming gradient, with private sums kH x kW x O that are added up in their order.
class DepthwiseLinesWeightGradient final : public Kernel {
 public:
  DepthwiseLinesWeightGradient(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images, bool is_transposed)
      : isa_(isa()), y_(geometry.window.y), x_(geometry.window.x), layout_(layout), is_transposed_(is_transposed), bias_(geometry, images, is_transposed),
        channels_(geometry.input_channels), width_(geometry.input_channels / geometry.groups), taps_(y_.kernel * x_.kernel),
        inner_(inner_outputs(x_)),
        lines_(std::size_t(std::max(0, images)) * std::max(0, y_.output)) {
    const std::size_t pixels = lines_ * std::max(0, x_.output);
    parts_ = std::clamp<std::size_t>(std::min(pixels / kPartPixels, lines_), 1, kParts);
    // Few pixels, as of a deep layer, are shared out by channels.
    channel_parts_ = std::clamp<std::size_t>(kFewestTasks / parts_, 1, std::max(1, channels_ / kPartChannels));
    if (width_ > 1)
      thread_floats_ = std::size_t(isa_.lanes) * (rows() + x_.output) + LineCopies(y_, x_).floats();
    threads_offset_ = scratch_.add(thread_floats_ * max_thread_count());
    sums_offset_ = scratch_.add(parts_ * rows() * channels_);
    bias_offset_ = scratch_.add(bias_.scratch_floats());
  }

  std::size_t scratch_bytes() const override { return scratch_.floats() * sizeof(float); }
  std::string algorithm() const override {
    return std::string(width_ > 1 ? "narrow groups" : "depthwise") + ", sums in registers, " + isa_.name;
  }

  void run(const KernelCall& call) override {
    float* scratch = static_cast<float*>(call.scratch);
    bias_.run(call, scratch + bias_offset_);
    float* weights = call.output<float>(0);
    if (!weights) return;
    const float* incoming = call.input<float>(is_transposed_ ? 1 : 0);
    const float* source = call.input<float>(is_transposed_ ? 0 : 1);
    float* sums = scratch + sums_offset_;
    const std::size_t count = std::size_t(rows()) * channels_;
    parallel_for(parts_ * channel_parts_, [&](std::size_t task, int thread) {
      const std::size_t part = task / channel_parts_, channel_part = task % channel_parts_, units = ceil_divide(channels_, isa_.lanes);
      const Range channels{static_cast<int>(part_begin(units, channel_part, channel_parts_)) * isa_.lanes,
                           std::min(channels_, static_cast<int>(part_begin(units, channel_part + 1, channel_parts_)) * isa_.lanes)};
      float* to = sums + part * count;
      if (width_ > 1) {
        for (std::size_t vector = channels.begin / isa_.lanes; vector < std::size_t(ceil_divide(channels.end, isa_.lanes)); ++vector)
          sum_vector(static_cast<int>(vector), part, incoming, source, to, scratch + threads_offset_ + thread * thread_floats_);
        return;
      }
      for (int row = 0; row < rows(); ++row) std::fill_n(to + std::size_t(row) * channels_ + channels.begin, channels.size(), 0.0f);
      const std::size_t end = part_begin(lines_, part + 1, parts_);
      for (std::size_t line = part_begin(lines_, part, parts_); line < end;) line = add_lines(line, end, channels, incoming, source, to);
    });
    parallel_ranges(ceil_divide(channels_, kPartChannels), parts_ * rows() * kPartChannels, [&](std::size_t begin, std::size_t end, int) {
      for (std::size_t block = begin; block < end; ++block) add_parts(static_cast<int>(block) * kPartChannels, sums, weights);
    });
  }

 private:
  static constexpr std::size_t kPartPixels = 512, kParts = 32, kFewestTasks = 16;
  static constexpr int kPartChannels = 32;
  /// Pixels of a call: few enough for their lines to stay in the first-level cache.
  static constexpr int kCallPixels = 64;

  /// Adds the parts of some channels up in their order, and stores them.
  void add_parts(int first, const float* sums, float* weights) const {
    const int channels = std::min(kPartChannels, channels_ - first);
    for (int row = 0; row < rows(); ++row) {
      float total[kPartChannels] = {};
      for (std::size_t part = 0; part < parts_; ++part) {
        const float* from = sums + (part * rows() + row) * channels_ + first;
        for (int c = 0; c < channels; ++c) total[c] += from[c];
      }
      const int tap = row / width_;
      float* to = weights + layout_.offset + tap / x_.kernel * layout_.y + tap % x_.kernel * layout_.x + row % width_ * layout_.input;
      for (int c = 0; c < channels; ++c) to[(first + c) / width_ * layout_.group + (first + c) % width_ * layout_.output] = total[c];
    }
  }

  /// Adds lines [line, ...) of one image that have the same taps inside, and returns the next.
  std::size_t add_lines(std::size_t line, std::size_t end, Range channels, const float* incoming, const float* source, float* sums) const {
    const std::size_t image = line / y_.output;
    const int i = static_cast<int>(line % y_.output);
    const Range taps = y_.taps_inside(i);
    int count = 1;
    const int most = std::max(1, kCallPixels / x_.output);
    while (count < most && line + count < end && i + count < y_.output && y_.taps_inside(i + count) == taps) ++count;
    if (taps.size() > 0) {
      const float* from = source + (image * y_.input + y_.tap(i, taps.begin)) * x_.input * channels_;
      for (int j = 0; j < inner_.begin; ++j) add(line, count, {j, j + 1}, taps, x_.taps_inside(j), channels, incoming, from, sums);
      if (inner_.size() > 0) add(line, count, inner_, taps, {0, x_.kernel}, channels, incoming, from, sums);
      for (int j = inner_.end; j < x_.output; ++j) add(line, count, {j, j + 1}, taps, x_.taps_inside(j), channels, incoming, from, sums);
    }
    return line + count;
  }

  void add(std::size_t line, int lines, Range pixels, Range taps_y, Range taps_x, Range part, const float* incoming,
           const float* source, float* sums) const {
    if (taps_x.size() == 0) return;
    const std::size_t channels = channels_, source_line = x_.input * channels;
    isa_.depthwise_sum({.incoming = incoming + (line * x_.output + pixels.begin) * channels + part.begin,
                        .source = source + x_.tap(pixels.begin, taps_x.begin) * channels + part.begin,
                        .sums = sums + (std::size_t(taps_y.begin) * x_.kernel + taps_x.begin) * channels + part.begin,
                        .lines = lines,
                        .pixels = pixels.size(),
                        .taps_y = taps_y.size(),
                        .taps_x = taps_x.size(),
                        .incoming_line = x_.output * channels,
                        .incoming_pixel = channels,
                        .source_line = y_.stride * source_line,
                        .source_tap_line = y_.dilation * source_line,
                        .source_pixel = x_.stride * channels,
                        .source_tap = x_.dilation * channels,
                        .sum_line = x_.kernel * channels,
                        .sum_tap = channels,
                        .channels = std::size_t(part.size())});
  }

  /// A vector of channels of narrow groups over the lines of a part; `scratch` is a thread's.
  void sum_vector(int vector, std::size_t part, const float* incoming, const float* source, float* sums, float* scratch) const {
    const int lanes = isa_.lanes, first = first_channel(vector, channels_);
    float *total = scratch, *e = total + rows() * lanes;
    std::fill_n(total, rows() * lanes, 0.0f);
    LineCopies lines(y_, x_);
    std::size_t held = lines_;
    for (std::size_t line = part_begin(lines_, part, parts_); line < part_begin(lines_, part + 1, parts_); ++line) {
      const std::size_t image = line / y_.output;
      const int i = static_cast<int>(line % y_.output);
      if (std::exchange(held, image) != image)
        lines.begin(source + image * y_.input * x_.input * channels_ + first, channels_, e + x_.output * lanes);
      isa_.gather_vectors(incoming + line * x_.output * channels_ + first, channels_, x_.output, e);
      const Range taps = y_.taps_inside(i);
      for (int tap = taps.begin; tap < taps.end; ++tap)
        isa_.depthwise_sum({.incoming = e,
                            .source = lines.line(isa_, y_.tap(i, tap)),
                            .sums = total + std::size_t(tap) * x_.kernel * width_ * lanes,
                            .lines = 1,
                            .pixels = x_.output,
                            .taps_y = 1,
                            .taps_x = x_.kernel,
                            .incoming_line = 0,
                            .incoming_pixel = std::size_t(lanes),
                            .source_line = 0,
                            .source_tap_line = 0,
                            .source_pixel = std::size_t(x_.stride) * lanes,
                            .source_tap = std::size_t(x_.dilation) * lanes,
                            .sum_line = 0,
                            .sum_tap = std::size_t(width_) * lanes,
                            .channels = std::size_t(lanes),
                            .width = width_});
    }
    for (int row = 0; row < rows(); ++row) std::copy_n(total + row * lanes, lanes, sums + std::size_t(row) * channels_ + first);
  }

  /// Of the sums: one for each tap and input of a group.
  int rows() const { return taps_ * width_; }

  const Isa& isa_;
  Axis y_, x_;
  WeightLayout layout_;
  bool is_transposed_;
  BiasGradient bias_;
  int channels_, width_, taps_;
  Range inner_;
  std::size_t lines_, parts_ = 1, channel_parts_ = 1, thread_floats_ = 0, threads_offset_ = 0, sums_offset_ = 0, bias_offset_ = 0;
  ScratchLayout scratch_;
};

}  // namespace

bool has_narrow_groups(const ConvolutionGeometry& geometry) {
  const int width = geometry.input_channels / geometry.groups, lanes = isa().lanes;
  return lanes >= 8 && (width == 2 || width == 4 || width == 8) && geometry.input_channels >= lanes && has_plain_lines(geometry);
}

bool has_plain_lines(const ConvolutionGeometry& geometry) {
  const Window& window = geometry.window;
  const bool reads_zeros = geometry.edge_mode != ImageEdgeMode::Clamp || (window.y.is_inside() && window.x.is_inside());
  return reads_zeros && geometry.output_channels == geometry.input_channels && window.y.output > 0 && window.x.output > 0;
}

std::unique_ptr<Kernel> make_depthwise_lines_forward(const ConvolutionGeometry& geometry, const WeightLayout& layout, int images,
                                                     const Epilogue& epilogue) {
  const Axis &y = geometry.window.y, &x = geometry.window.x;
  std::vector<DepthwisePass> passes;
  passes.emplace_back(Phase{y, all_taps(y), 0, 1}, Phase{x, all_taps(x), 0, 1}, geometry, layout.output, layout.input);
  return std::make_unique<DepthwiseLines>(std::move(passes), layout, images, y.output, x.output, epilogue);
}

std::unique_ptr<Kernel> make_depthwise_lines_data_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout,
                                                           int images, const Epilogue& epilogue) {
  std::vector<DepthwisePass> passes;
  for (const Phase& y : phases(geometry.window.y))
    for (const Phase& x : phases(geometry.window.x)) passes.emplace_back(y, x, geometry, layout.input, layout.output);
  return std::make_unique<DepthwiseLines>(std::move(passes), layout, images, geometry.window.y.input, geometry.window.x.input, epilogue);
}

std::unique_ptr<Kernel> make_depthwise_lines_weight_gradient(const ConvolutionGeometry& geometry, const WeightLayout& layout,
                                                             int images, bool is_transposed) {
  return std::make_unique<DepthwiseLinesWeightGradient>(geometry, layout, images, is_transposed);
}

}  // namespace mpsnn::cpu
