// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "bindings.hpp"

/// What the files that bind node classes share.
namespace mpsnn::python {

using Image = ImageNodePtr;
using GradientState = std::shared_ptr<NNGradientStateNode>;

/// A Python object that C++ calls back, from whatever thread plans the graph.
class PyCallback {
 public:
  explicit PyCallback(py::object object) : object_(keep_object(std::move(object))) {}
  py::object object() const { return py::reinterpret_borrow<py::object>(static_cast<PyObject*>(object_.get())); }

 private:
  std::shared_ptr<void> object_;
};

void bind_normalization_nodes(py::module_& m);
void bind_shape_nodes(py::module_& m);

/// A node class under Apple's name, inheriting as Apple's does.
template <class Node, class Base>
py::class_<Node, Base, std::shared_ptr<Node>> node_class(py::module_& m, const char* name, const char* doc) {
  return py::class_<Node, Base, std::shared_ptr<Node>>(m, name, doc);
}

template <class Node, class Class>
void def_training_style(Class& c) {
  c.def_property("training_style", [](const Node& node) { return node.training_style; }, [](Node& node, NNTrainingStyle style) { node.training_style = style; },
                 "Who updates the parameters; copied to gradient nodes when they are made.");
}

}  // namespace mpsnn::python
