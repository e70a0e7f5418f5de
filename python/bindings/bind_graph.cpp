// SPDX-License-Identifier: Apache-2.0
#include "bindings.hpp"

namespace mpsnn::python {
namespace {

py::list handle_list(const std::vector<HandlePtr>& handles) {
  py::list result;
  for (const HandlePtr& handle : handles) result.append(object_of(handle));
  return result;
}

std::vector<StatePtr> states_of(const py::object& list) {
  std::vector<StatePtr> states;
  if (list.is_none()) return states;
  auto refuse = [](const char* sentence, const py::handle given) {
    throw OptionError(sentence, {.node = "MPSNNGraph", .expected = "a list of MPSCNNLossLabels, one per loss node", .actual = py::str(py::type::handle_of(given)).cast<std::string>(),
                                 .hint = "[MPSCNNLossLabels(labels)]"});
  };
  if (!py::isinstance<py::list>(list) && !py::isinstance<py::tuple>(list)) refuse("source_states must be a list, one entry per loss node of the graph.", list);
  for (const py::handle item : list) {
    if (!item.is_none() && !py::isinstance<State>(item)) refuse("source_states holds something that is no state.", item);
    states.push_back(item.cast<StatePtr>());
  }
  return states;
}

/// One image for a graph with one result, a list for several; exports go into the caller's lists.
py::object deliver(const EncodedResults& results, const py::object& intermediate_images, const py::object& destination_states) {
  if (!intermediate_images.is_none())
    for (const ImagePtr& image : results.intermediate_images) intermediate_images.attr("append")(image);
  if (!destination_states.is_none())
    for (const StatePtr& state : results.destination_states) destination_states.attr("append")(state);
  return results.result_images.size() == 1 ? py::cast(results.result_images.front()) : py::cast(results.result_images);
}

py::object encode(NNGraph& graph, CommandBuffer& command_buffer, const py::object& source_images, const py::object& source_states,
                  const py::object& intermediate_images, const py::object& destination_states) {
  const auto images = images_of(source_images, "source_images");
  const auto states = states_of(source_states);
  EncodedResults results;
  {
    py::gil_scoped_release release;
    results = graph.encode(command_buffer, images, states);
  }
  return deliver(results, intermediate_images, destination_states);
}

py::object run(NNGraph& graph, const py::object& source_images, const py::object& source_states, const py::object& intermediate_images,
               const py::object& destination_states) {
  const auto images = images_of(source_images, "source_images");
  const auto states = states_of(source_states);
  EncodedResults results;
  {
    py::gil_scoped_release release;
    results = graph.run(images, states);
  }
  return deliver(results, intermediate_images, destination_states);
}

py::object encode_batch(NNGraph& graph, CommandBuffer& command_buffer, const py::list& source_images, const py::object& source_states,
                        const py::object& intermediate_images, const py::object& destination_states) {
  std::vector<ImageBatch> images;
  for (const py::handle batch : source_images) images.push_back(images_of(py::reinterpret_borrow<py::object>(batch), "a batch of source_images"));
  std::vector<StateBatch> states;
  if (!source_states.is_none())
    for (const py::handle batch : source_states) states.push_back(states_of(py::reinterpret_borrow<py::object>(batch)));
  EncodedBatches results;
  {
    py::gil_scoped_release release;
    results = graph.encode_batch(command_buffer, images, states);
  }
  if (!intermediate_images.is_none())
    for (const ImageBatch& batch : results.intermediate_images) intermediate_images.attr("append")(batch);
  if (!destination_states.is_none())
    for (const StatePtr& state : results.destination_states) destination_states.attr("append")(state);
  return results.result_images.size() == 1 ? py::cast(results.result_images.front()) : py::cast(results.result_images);
}

std::shared_ptr<CommandBuffer> execute_async(NNGraph& graph, const py::object& source_images, std::function<void(py::object, py::object)> handler) {
  const auto images = images_of(source_images, "source_images");
  py::gil_scoped_release release;
  return graph.execute_async(images, [handler = std::move(handler)](const EncodedResults& results, std::exception_ptr error) {
    py::gil_scoped_acquire gil;
    py::object caught = py::none();
    if (error) {
      try {
        py::cpp_function([error] { std::rethrow_exception(error); })();
      } catch (py::error_already_set& e) {
        caught = e.value();
      }
    }
    handler(error ? py::object(py::none()) : py::cast(results.result_images.front()), caught);
  });
}

/// Without the GIL: an engine may ask data sources from threads of its own.
std::shared_ptr<NNGraph> make_graph(const py::object& device, const std::vector<ImageNodePtr>& results, const std::vector<bool>& needed) {
  const DevicePtr chosen = device_of(device);
  py::gil_scoped_release release;
  return std::make_shared<NNGraph>(chosen, results, needed);
}

std::vector<Shape> shapes_of(const std::vector<std::tuple<int, int, int, int>>& tuples) {
  std::vector<Shape> shapes;
  for (const auto& [images, height, width, channels] : tuples) {
    shapes.push_back({images, height, width, channels});
    if (images < 0 || height < 0 || width < 0 || channels < 0)
      throw ShapeError("a source image cannot be of size " + shapes.back().text() + ".",
                       {.node = "MPSNNGraph", .expected = "sizes of at least 0", .actual = shapes.back().text(), .hint = "[(N, H, W, C)]"});
  }
  return shapes;
}

PreflightReport preflight(const NNGraph& graph, const std::string& engine, const std::optional<std::vector<std::tuple<int, int, int, int>>>& shapes) {
  if (!shapes) return graph.preflight(engine);
  return graph.preflight(engine, shapes_of(*shapes));
}

void bind_plan(py::module_& m) {
  py::class_<PlannedOperation>(m, "PlannedOperation", "One row of a plan.")
      .def_readonly("operation", &PlannedOperation::operation)
      .def_readonly("node", &PlannedOperation::node)
      .def_readonly("algorithm", &PlannedOperation::algorithm)
      .def_readonly("result", &PlannedOperation::result)
      .def_readonly("layout", &PlannedOperation::layout, "how the kernel lays its numbers out")
      .def_readonly("reason", &PlannedOperation::reason, "why this algorithm, with the costs of the others; empty where there is one only")
      .def_readonly("flops", &PlannedOperation::flops, "of a direct loop, 2 per multiply-add")
      .def_readonly("work", &PlannedOperation::work, "floating-point operations of the algorithm")
      .def_readonly("bytes", &PlannedOperation::bytes, "operands read and written")
      .def_readonly("limit", &PlannedOperation::limit, "\"compute\" or \"memory\": what takes longer at the machine's peak; empty where that is unknown")
      .def_readonly("least_seconds", &PlannedOperation::least_seconds, "that time");
  py::class_<PlanReport>(m, "PlanReport", "What a step would do: operations, flops and memory. print() shows the table.")
      .def_readonly("operations", &PlanReport::operations)
      .def_readonly("flops", &PlanReport::flops)
      .def_readonly("arena_bytes", &PlanReport::arena_bytes, "images, states and scratch, laid out by lifetimes")
      .def_readonly("unshared_bytes", &PlanReport::unshared_bytes, "the same images without sharing")
      .def_readonly("parameter_bytes", &PlanReport::parameter_bytes, "parameters and their gradients")
      .def_readonly("peak_flops", &PlanReport::peak_flops, "of this machine, per second, measured with its threads; 0 for other engines")
      .def_readonly("peak_bytes", &PlanReport::peak_bytes)
      .def("__str__", &PlanReport::text);
  py::class_<ProfileReport>(m, "ProfileReport", "Where the time of a step goes. print() shows the table.")
      .def_readonly("operations", &ProfileReport::operations)
      .def_readonly("seconds", &ProfileReport::seconds, "per operation, the median of all runs")
      .def_readonly("peak_flops", &ProfileReport::peak_flops, "of this machine, per second, measured with its threads; 0 for other engines")
      .def_readonly("peak_bytes", &ProfileReport::peak_bytes)
      .def("__str__", &ProfileReport::text);
}

}  // namespace

void bind_graph(py::module_& m) {
  bind_plan(m);
  py::class_<NNGraph, std::shared_ptr<NNGraph>> graph(m, "MPSNNGraph", R"(Everything that its results need, ready to run (MPS_SEMANTICS 20).

Args:
    device: a Device, its name, or None for the default one.
    result_image: the image node to compute; or result_images, a list.
    result_image_is_needed: False when only the weight updates matter; or results_are_needed, one flag per image.

Data sources are loaded now. Raises GraphError for nodes that cannot be run, WeightError for data sources of wrong size.)");
  graph.def(py::init([](const py::object& device, const ImageNodePtr& result, bool is_needed) { return make_graph(device, {result}, {is_needed}); }),
           "device"_a, "result_image"_a, "result_image_is_needed"_a = true)
      .def(py::init([](const py::object& device, const std::vector<ImageNodePtr>& results, const std::optional<std::vector<bool>>& needed) {
             return make_graph(device, results, needed.value_or(std::vector<bool>{}));
           }), "device"_a, "result_images"_a, "results_are_needed"_a = py::none())
      .def_property_readonly("device", [](const NNGraph& g) { return std::const_pointer_cast<Device>(g.device()); })
      .def_readwrite("label", &NNGraph::label)
      .def_readwrite("format", &NNGraph::format)
      .def_property("precision", [](const NNGraph& g) { return precision_name(g.precision); }, [](NNGraph& g, const std::string& name) { g.precision = precision_of(name); },
                    "\"fast\" (default): convolutions may use algorithms with fewer multiplications and a bounded, somewhat larger rounding error "
                    "(docs/accuracy.md). \"strict\": only algorithms as exact as adding the products up directly. Saved with the graph.")
      .def_readwrite("options", &NNGraph::options)
      .def_readwrite("output_state_is_temporary", &NNGraph::output_state_is_temporary)
      .def_property("destination_image_allocator", [](const NNGraph& g) { return g.destination_image_allocator; },
                    [](NNGraph& g, const ImageAllocatorPtr& allocator) { g.destination_image_allocator = allocator_of(allocator); }, "Who makes the result image.")
      .def("read_count_for_source_image_at_index", &NNGraph::read_count_for_source_image_at_index, "index"_a, "By how much an encode lowers the read count of this temporary source image.")
      .def("read_count_for_source_state_at_index", &NNGraph::read_count_for_source_state_at_index, "index"_a)
      .def_readwrite("trap_nonfinite", &NNGraph::trap_nonfinite,
                     "Watch result images too: a NaN or Inf ends the step in a DeviceError that names the first node that made it. Steps that train "
                     "always watch losses and weight gradients: no weight changes when one is not finite.")
      .def_property_readonly("source_image_handles", [](const NNGraph& g) { return handle_list(g.source_image_handles()); }, "The order in which encode expects its images.")
      .def_property_readonly("source_state_handles", [](const NNGraph& g) { return handle_list(g.source_state_handles()); }, "The order in which encode expects its states.")
      .def_property_readonly("intermediate_image_handles", [](const NNGraph& g) { return handle_list(g.intermediate_image_handles()); })
      .def_property_readonly("result_state_handles", [](const NNGraph& g) { return handle_list(g.result_state_handles()); })
      .def_property_readonly("result_handle", [](const NNGraph& g) { return object_of(g.result_handle()); })
      .def_property_readonly("result_image_is_needed", &NNGraph::result_image_is_needed)
      .def_property_readonly("nodes", &NNGraph::nodes, "Filter nodes in execution order.")
      .def_property_readonly("result_images", &NNGraph::result_image_nodes, "The image nodes that the graph was made for.")
      .def_property("encode_count", &NNGraph::encode_count, &NNGraph::set_encode_count, "Encodes so far: dropout masks depend on it. Set it to continue an interrupted training.")
      .def("encode", &encode, "command_buffer"_a, "source_images"_a, "source_states"_a = py::none(), "intermediate_images"_a = py::none(), "destination_states"_a = py::none(),
           R"(Records one step and returns its result image (None when not needed, a list when there are several); valid after completion.

source_images: one array or MPSImage (N x H x W x C) per input, all with the same N. source_states: one MPSCNNLossLabels per loss node.
intermediate_images, destination_states: lists to which exported images and states are appended.)")
      .def("encode_batch", &encode_batch, "command_buffer"_a, "source_images"_a, "source_states"_a = py::none(), "intermediate_images"_a = py::none(),
           "destination_states"_a = py::none(), "The same for batches as MPS passes them: per input a list of single images, per loss node a list of labels.")
      .def("run", &run, "source_images"_a, "source_states"_a = py::none(), "intermediate_images"_a = py::none(), "destination_states"_a = py::none(),
           "encode, commit and wait: the results are valid on return.")
      .def("execute_async", &execute_async, "source_images"_a, py::arg("completion_handler").none(false), "Runs on a queue of the graph's own; completion_handler(image, error) is called from its thread.")
      .def("reload_from_data_sources", [](NNGraph& g) {
        py::gil_scoped_release release;
        g.reload_from_data_sources();
      }, "Reads every data source again. No step may be in flight.")
      .def("export_weights", &NNGraph::export_weights, py::arg("data_source").none(false), "A copy of the weights that the kernels use now.")
      .def("plan", [](NNGraph& g, const std::vector<std::tuple<int, int, int, int>>& shapes) { return g.plan(shapes_of(shapes)); }, "source_shapes"_a,
           "What a step would do for source images of these (N, H, W, C) shapes. Raises what encode would raise for them.")
      .def_property_readonly("data_sources", &NNGraph::data_sources, "Data sources in the order of their first use.")
      .def("preflight", &preflight, "engine"_a, "shapes"_a = py::none(), R"(What the named engine's framework would refuse or treat differently, node by node.

engine: "metal" checks Apple's rules, here and now, without a Mac; the engines of this library have none, their reports are empty.
shapes: (N, H, W, C) of each source image. Without them the rules about sizes are left out, and the report says which.

Raises OptionError for an unknown engine, and for shapes that do not fit what encode would raise. Rules: docs/preflight.md.

>>> import mpsnn
>>> image = mpsnn.MPSNNImageNode("x")
>>> graph = mpsnn.MPSNNGraph("cpu", mpsnn.MPSCNNDropoutNode(image).result_image)
>>> report = graph.preflight("metal", shapes=[(1, 8, 8, 3)])
>>> report.ok, [finding.rule for finding in report.findings]
(True, ['dropout-mask']))")
      .def("profile", [](NNGraph& g, const py::object& source_images, const py::object& source_states, std::size_t runs) {
        const auto images = images_of(source_images, "source_images");
        const auto states = states_of(source_states);
        py::gil_scoped_release release;
        return g.profile(images, states, runs);
      }, "source_images"_a, "source_states"_a = py::none(), "runs"_a = 10, "Runs steps without updating weights and times each operation.")
      .def("time_operations", [](NNGraph& g, const py::object& source_images, const py::object& source_states, std::vector<std::size_t> operations, std::size_t runs) {
        const auto images = images_of(source_images, "source_images");
        const auto states = states_of(source_states);
        py::gil_scoped_release release;
        return g.time_operations(images, states, std::move(operations), runs);
      }, "source_images"_a, "source_states"_a, "operations"_a, "runs"_a,
           "Seconds per run that some of profile().operations, by index, take alone. Packed weights are made anew in every run.")
      .def("node_name", &NNGraph::node_name, "node"_a, "How errors and plans call the node.")
      .def_property_readonly("debug_description", &NNGraph::debug_description);
  bind_graph_file(m, graph);
}

}  // namespace mpsnn::python
