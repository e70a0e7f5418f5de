// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

#include "mpsnn/export.hpp"

namespace mpsnn {

/// What an error is about: the node, and the two things that do not agree.
struct ErrorFacts {
  std::string node{};      ///< class name of the node, e.g. "MPSCNNConvolutionNode"
  std::string label{};     ///< its label, or the name the graph gave it
  std::string expected{};  ///< the shape or value that would be right
  std::string actual{};    ///< the shape or value that was given
  std::string hint{};      ///< what to try
};

/// Base of everything that this library throws. `what()` is one sentence, then the facts, then a hint.
class MPSNN_API Error : public std::runtime_error {
 public:
  explicit Error(const std::string& sentence, ErrorFacts facts = {});
  const std::string& node() const { return facts_.node; }
  const std::string& label() const { return facts_.label; }
  const std::string& expected() const { return facts_.expected; }
  const std::string& actual() const { return facts_.actual; }

 private:
  ErrorFacts facts_;
};

/// Sizes or channel counts that do not fit together.
class MPSNN_API ShapeError : public Error { public: using Error::Error; };
/// A parameter outside its range, or a combination that has no meaning.
class MPSNN_API OptionError : public Error { public: using Error::Error; };
/// A data source whose values, sizes or callbacks are wrong.
class MPSNN_API WeightError : public Error { public: using Error::Error; };
/// Nodes that cannot form a graph.
class MPSNN_API GraphError : public Error { public: using Error::Error; };
/// A device, queue or command buffer that cannot do what is asked, or a step that failed while it ran.
class MPSNN_API DeviceError : public Error { public: using Error::Error; };
/// A file that is missing, truncated, or not what it should be.
class MPSNN_API FileError : public Error { public: using Error::Error; };

}  // namespace mpsnn
