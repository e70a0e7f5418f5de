// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/operations.hpp"
#include "mpsnn/image.hpp"
#include "mpsnn/precision.hpp"

/// The whole interface between graphs and engines.
namespace mpsnn {

/// Shapes of an operation's operands, in the order that its struct documents. An absent operand is all zeros. Weights are
/// {O, kH, kW, I/groups}; one-dimensional parameters are {1, 1, 1, count}.
struct OperandShapes {
  std::vector<Shape> inputs, outputs;
};

/// What a kernel is given when it runs. Numbers are of the engine's element type.
struct KernelCall {
  std::span<void* const> inputs;   ///< null where absent
  std::span<void* const> outputs;  ///< null where nobody needs it
  void* saved = nullptr;           ///< what a forward kernel leaves for its gradient (Backend::saved_bytes)
  void* scratch = nullptr;         ///< Kernel::scratch_bytes(), 64-byte aligned, contents undefined
  void* packed = nullptr;          ///< Kernel::packed_bytes(), 64-byte aligned, contents as left by the last run with this parameters_version
  std::uint64_t encode_count = 0;  ///< how often this graph was encoded before
  std::uint64_t parameters_version = 0;  ///< changes when any parameter does, or `packed` was used by others: packed weights are stale then

  template <class T>
  const T* input(std::size_t i) const { return i < inputs.size() ? static_cast<const T*>(inputs[i]) : nullptr; }
  template <class T>
  T* output(std::size_t i) const { return i < outputs.size() ? static_cast<T*>(outputs[i]) : nullptr; }
};

/// One operation made ready for fixed shapes. Runs once per step; run() allocates nothing and throws nothing.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual std::size_t scratch_bytes() const { return 0; }
  /// For weights in the order in which products read them, which serve until the parameters change.
  virtual std::size_t packed_bytes() const { return 0; }
  virtual void run(const KernelCall& call) = 0;
  // What plan() prints: the algorithm, how it lays numbers out, what it was chosen for where there was a choice, and the floating-point
  // operations that it needs where a direct loop needs `direct`.
  virtual std::string algorithm() const { return "direct"; }
  virtual std::string layout() const { return "NHWC"; }
  virtual std::string reason() const { return ""; }
  virtual double flops(double direct) const { return direct; }
};

class EngineGraph;
class ParameterStore;
struct GraphParts;

/// What a machine can do at best, per second: floating-point operations, and bytes of memory read or written. Zeros where nobody knows.
struct MachinePeak {
  double flops = 0, bytes = 0;
};

/// An engine.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual ElementType element_type() const = 0;
  /// Zeros for a graph's parameters, in memory that the engine computes with.
  virtual Buffer allocate(std::size_t count) const { return Buffer(count, element_type()); }
  /// For the threads that it uses now; measured at the first call, which takes some 50 ms.
  virtual MachinePeak peak() const { return {}; }
  /// Whose rules a graph must keep before it is built, a name that NNGraph::preflight() knows; null where nothing refuses.
  virtual const char* preflight_engine() const { return nullptr; }
  /// The engine's side of one graph; `parts` and `parameters` outlive it.
  virtual std::unique_ptr<EngineGraph> make_graph(const GraphParts& parts, ParameterStore& parameters) const = 0;
};

/// An engine that runs plans, operation by operation.
class KernelBackend : public Backend {
 public:
  std::unique_ptr<EngineGraph> make_graph(const GraphParts& parts, ParameterStore& parameters) const final;
  /// Bytes that a forward operation keeps for its gradient, e.g. the winners of max pooling; 0 when it keeps nothing.
  virtual std::size_t saved_bytes(const Operation& forward, const OperandShapes& shapes) const = 0;
  /// True when the kernels know the operations that fused() makes.
  virtual bool fuses() const { return false; }
  /// True when the kernel of a convolution or batch normalization knows the pooling that it is given; shapes are those without it.
  virtual bool pools(const ConvolutionOp&, const OperandShapes&, Precision) const { return false; }
  virtual bool pools(const BatchNormalizationOp&, const OperandShapes&, Precision) const { return false; }
  virtual std::unique_ptr<Kernel> make_kernel(const Operation& operation, const OperandShapes& shapes, Precision precision) const = 0;
};

const Backend& reference_backend();
const Backend& cpu_backend();

}  // namespace mpsnn
