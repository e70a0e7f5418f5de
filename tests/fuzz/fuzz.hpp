// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

/// Random inputs that are the same on every machine, and how a fuzzer stops.
namespace mpsnn::fuzz {

/// SplitMix64.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  /// From 0 to count - 1.
  std::uint64_t below(std::uint64_t count) { return count == 0 ? 0 : bits() % count; }
  bool one_in(std::uint64_t count) { return below(count) == 0; }
  template <class List>
  auto& of(List& list) { return list[below(std::size(list))]; }

 private:
  std::uint64_t state_;
};

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "FUZZ: %s\n", what.c_str());
  std::abort();
}

/// Arguments of a stand-alone fuzzer: how many inputs, and the seed of the first; input i has seed + i.
struct Arguments {
  std::uint64_t count, seed;
  Arguments(int argument_count, char** arguments, std::uint64_t usual_count)
      : count(argument_count > 1 ? std::strtoull(arguments[1], nullptr, 10) : usual_count),
        seed(argument_count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1) {}
};

}  // namespace mpsnn::fuzz
