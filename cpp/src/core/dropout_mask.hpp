// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

/// dropout_keeps() taken apart: what the channels of a pixel share, and what is left for each. In an unnamed namespace, as
/// vector_math.hpp is.
namespace mpsnn {

struct DropoutOp;

std::uint64_t dropout_pixel_bits(const DropoutOp& dropout, std::uint64_t encode_count, int image, int y, int x);

/// 53 random bits below this number keep an element.
std::uint64_t dropout_threshold(const DropoutOp& dropout);

namespace {

/// SplitMix64's finalizer: every input bit reaches every output bit.
[[maybe_unused]] constexpr std::uint64_t mix(std::uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ull;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebull;
  return bits ^ (bits >> 31);
}

/// `channel` is 0 where the mask does not vary along channels.
[[maybe_unused]] constexpr bool dropout_keeps_channel(std::uint64_t pixel_bits, std::uint64_t threshold, std::uint64_t channel) {
  return mix(pixel_bits ^ channel) >> 11 < threshold;
}

}  // namespace
}  // namespace mpsnn
