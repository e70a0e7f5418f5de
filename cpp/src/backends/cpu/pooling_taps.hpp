// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "mpsnn/geometry.hpp"

/// Which pixels meet along one axis of a pooling, worked out once per kernel so that loops neither divide nor clamp.
namespace mpsnn::cpu {

/// An input and an output pixel that meet. Clamped taps that read the same edge pixel are one meeting: the first tap counts
/// them all, and as tap order is pixel order it also stands for them when ties go to the first.
struct Meeting {
  int pixel;  ///< the other axis end: input pixel in forward tables, output pixel in gradient tables
  int tap;    ///< the first tap under which they meet
  int count;  ///< how many taps do
};

/// The meetings of every pixel of one end of an axis, in rising order of the other end.
class MeetingTable {
 public:
  std::span<const Meeting> operator[](int pixel) const {
    return {meetings_.data() + first_[pixel], meetings_.data() + first_[pixel + 1]};
  }
  int longest() const {
    std::size_t longest = 0;
    for (std::size_t i = 1; i < first_.size(); ++i) longest = std::max(longest, first_[i] - first_[i - 1]);
    return static_cast<int>(longest);
  }

  /// For each output pixel, the input pixels that its window reads. Without `clamps`, taps outside of the image are left out.
  static MeetingTable forward(const Axis& axis, bool clamps) {
    MeetingTable table;
    for (int o = 0; o < axis.output; ++o) {
      for (int t = 0; t < axis.kernel; ++t) {
        const int tap = axis.tap(o, t), pixel = clamp_index(tap, axis.input);
        if (tap != pixel && !clamps) continue;
        if (table.meetings_.size() > table.first_.back() && table.meetings_.back().pixel == pixel) ++table.meetings_.back().count;
        else table.meetings_.push_back({pixel, t, 1});
      }
      table.first_.push_back(table.meetings_.size());
    }
    return table;
  }

  /// For each input pixel, the output pixels whose windows read it.
  static MeetingTable gradient(const Axis& axis, bool clamps) {
    const MeetingTable windows = forward(axis, clamps);
    std::vector<std::vector<Meeting>> readers(axis.input);
    for (int o = 0; o < axis.output; ++o)
      for (const Meeting& m : windows[o]) readers[m.pixel].push_back({o, m.tap, m.count});
    MeetingTable table;
    for (const auto& reader : readers) {
      table.meetings_.insert(table.meetings_.end(), reader.begin(), reader.end());
      table.first_.push_back(table.meetings_.size());
    }
    return table;
  }

 private:
  std::vector<std::size_t> first_{0};
  std::vector<Meeting> meetings_;
};

}  // namespace mpsnn::cpu
