// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "backends/backend.hpp"
#include "core/operations.hpp"

namespace mpsnn {

class NNFilterNode;

/// A number in Plan::values, or kNoValue for an operand that is absent.
using ValueId = int;
inline constexpr ValueId kNoValue = -1;

/// Where the numbers of a value live.
enum class Storage {
  arena,          ///< at `offset` in the plan's arena, between its first and last step
  source_image,   ///< the caller's image `slot`
  labels,         ///< labels image of source state `slot`
  label_weights,  ///< its weights image
  loss,           ///< its loss image
  parameter,      ///< at `offset` elements in the graph's parameters
  gradient,       ///< at `offset` elements in the graph's gradients and batch statistics
  result,         ///< an image returned to the caller: result or export `slot`
};

/// One image, parameter or state of a step.
struct Value {
  Shape shape;
  Storage storage = Storage::arena;
  int slot = 0;
  std::size_t offset = 0;  ///< bytes in the arena, elements elsewhere
  std::size_t bytes = 0;   ///< in the arena
  int first_step = -1, last_step = -1;
  std::string label;
};

/// One operation with its operands.
struct Step {
  Operation operation;
  std::vector<ValueId> inputs, outputs;
  ValueId saved = kNoValue;  ///< what a forward operation keeps for its gradient
  const NNFilterNode* node = nullptr;
};

/// Everything a step does, for fixed input shapes. Made once, run often.
struct Plan {
  std::vector<Value> values;
  std::vector<Step> steps;
  std::size_t arena_bytes = 0;
  int images = 0;  ///< batch size

  OperandShapes operand_shapes(const Step& step) const;
};

/// Removes every step that contributes to none of `needed`, and marks outputs that nobody reads as absent.
void prune(Plan& plan, const std::vector<ValueId>& needed);

/// The plan with neighbours made one operation, for an engine whose kernels know the fused forms.
Plan fused(Plan plan, const KernelBackend& backend, Precision precision);

/// What lies in the arena begins at cache lines.
constexpr std::size_t aligned_in_arena(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

/// Gives every value in the arena its lifetime and a place that no value alive at the same time shares. `scratch_bytes` is a
/// further region behind them, alive in every step; returns its offset. With `in_place` an element-wise operation writes where its first
/// operand was, if that is not read again: half the memory, and lines that are in the cache already.
std::size_t lay_out_arena(Plan& plan, std::size_t element_bytes, std::size_t scratch_bytes, bool in_place);

/// Multiplications and additions of one step, counted as a direct loop would do them (2 per multiply-add).
double count_flops(const Step& step, const OperandShapes& shapes);

}  // namespace mpsnn
