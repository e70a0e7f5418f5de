// SPDX-License-Identifier: Apache-2.0
#include "core/engine.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/fetch_ahead.hpp"
#include "core/parallel.hpp"
#include "mpsnn/error.hpp"

namespace mpsnn {
namespace {

/// True when a value of [begin, end) is not finite: its exponent's bits are all ones. Whole numbers, because a compiler may not
/// reorder floating-point sums into vectors: 0.4 ns an element instead of 1.5.
template <class T>
bool has_nonfinite(const T* begin, const T* end) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  constexpr Bits kInfinity = std::bit_cast<Bits>(std::numeric_limits<T>::infinity()), kMagnitude = std::numeric_limits<Bits>::max();
  constexpr std::ptrdiff_t kLines = 4, kBlock = kLines * kCacheLine / sizeof(T);
  Bits found = 0;
  for (; begin != end; begin += std::min(kBlock, end - begin)) {
    fetch_ahead<kLines>(begin);
    for (std::ptrdiff_t i = 0, count = std::min(kBlock, end - begin); i < count; ++i)
      found |= (std::bit_cast<Bits>(begin[i]) & kMagnitude) >= kInfinity ? 1 : 0;
  }
  return found != 0;
}

template <class T>
std::size_t first_nonfinite_of(const T* values, std::size_t count) {
  constexpr std::size_t kBlock = 16384;
  std::atomic<std::size_t> first{count};
  parallel_for((count + kBlock - 1) / kBlock, [&](std::size_t block, int) {
    const std::size_t begin = block * kBlock, end = std::min(count, begin + kBlock);
    if (begin >= first.load(std::memory_order_relaxed) || !has_nonfinite(values + begin, values + end)) return;
    std::size_t index = static_cast<std::size_t>(std::find_if(values + begin, values + end, [](T v) { return !std::isfinite(v); }) - values);
    for (std::size_t known = first.load(); index < known && !first.compare_exchange_weak(known, index);) {}
  });
  return first.load();
}

}  // namespace

namespace {

[[noreturn]] void cannot_time() {
  throw DeviceError("this device does not time single operations.", {.node = "MPSNNGraph", .expected = "the cpu or the reference device", .hint = "profile with Device(\"cpu\")"});
}

}  // namespace

void Executable::profile(Bindings, std::size_t, double*) { cannot_time(); }
std::vector<double> Executable::time_steps(Bindings, const std::vector<std::size_t>&, std::size_t) { cannot_time(); }

void* Executable::outside_address(const Value& value, const Bindings& bindings) const {
  auto element = [&](void* base) { return static_cast<std::byte*>(base) + value.offset * element_bytes(type_); };
  switch (value.storage) {
    case Storage::arena: return nullptr;
    case Storage::source_image: return bindings.source_images[value.slot];
    case Storage::labels: return bindings.labels[value.slot];
    case Storage::label_weights: return bindings.label_weights[value.slot];
    case Storage::loss: return bindings.losses[value.slot];
    case Storage::parameter: return element(bindings.parameters);
    case Storage::gradient: return element(bindings.gradients);
    case Storage::result: return bindings.results[value.slot];
  }
  return nullptr;
}

std::size_t Executable::first_nonfinite(const Value& value, const Bindings& bindings) const {
  return first_nonfinite_at(address(value, bindings), value.shape.count());
}

std::size_t Executable::first_nonfinite_at(const void* data, std::size_t count) const {
  if (!data) return count;
  return type_ == ElementType::float64 ? first_nonfinite_of(static_cast<const double*>(data), count)
                                       : first_nonfinite_of(static_cast<const float*>(data), count);
}

bool Executable::is_finite(const Bindings& bindings, bool watches_results) const {
  // Gradients lie behind one another: one loop over all instead of a hundred. What lies between them may be anything, so only what is
  // found there is looked at closely.
  std::size_t begin = std::numeric_limits<std::size_t>::max(), end = 0;
  for (const Value& value : plan_.values) {
    if (value.storage != Storage::gradient || value.first_step < 0) continue;
    begin = std::min(begin, value.offset);
    end = std::max(end, value.offset + value.shape.count());
  }
  const Value all{.shape = {1, 1, 1, 0}, .storage = Storage::gradient, .offset = begin, .label = {}};
  const std::size_t count = end > begin ? end - begin : 0;
  const bool are_gradients_finite = count == 0 || first_nonfinite_at(outside_address(all, bindings), count) == count;
  return std::all_of(plan_.values.begin(), plan_.values.end(), [&](const Value& value) {
    const bool leaves_the_step = value.storage == Storage::loss || (value.storage == Storage::gradient && !are_gradients_finite) ||
                                  (watches_results && value.storage == Storage::result);
    return !leaves_the_step || value.first_step < 0 || first_nonfinite(value, bindings) == value.shape.count();
  });
}

bool Executable::find_nonfinite(const Bindings& bindings, NonfiniteValue& found) {
  // What comes from outside is to blame before what was computed.
  for (const bool is_given : {true, false})
    for (std::size_t id = 0; id < plan_.values.size(); ++id) {
      const Value& value = plan_.values[id];
      const bool is_computed = value.storage == Storage::loss || value.storage == Storage::gradient || value.storage == Storage::result;
      if (is_computed == is_given) continue;
      const std::size_t index = first_nonfinite(value, bindings);
      if (index == value.shape.count()) continue;
      found = {nullptr, static_cast<ValueId>(id), index};
      return true;
    }
  return false;
}

}  // namespace mpsnn
