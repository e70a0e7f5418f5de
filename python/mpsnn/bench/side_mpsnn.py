# SPDX-License-Identifier: Apache-2.0
"""Our side of the benchmark: layers and networks as graph nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

import mpsnn
from mpsnn.bench.cases import DATA, FORWARD, WEIGHTS, LayerCase, StepCase
from mpsnn.bench.networks import Network, batch, parameters
from mpsnn.bench.timing import Timed, layer_inputs, repeat

VARIANTS = ["mpsnn"]


def set_threads(count: int) -> None:
    mpsnn.set_num_threads(count)


# --- layers


def _padding(pixels: int) -> Any:
    return mpsnn.ExplicitPadding(left=pixels, right=pixels, top=pixels, bottom=pixels)


def _convolution(source: Any, weights: Any, biases: Any, stride: int, padding: int, groups: int = 1) -> Any:
    outputs, height, width, _ = weights.shape
    make, options = mpsnn.MPSCNNConvolutionDescriptor, {"groups": groups}
    if groups > 1 and groups == outputs:
        make, options = mpsnn.MPSCNNDepthWiseConvolutionDescriptor, {}
    descriptor = make(
        width,
        height,
        weights.shape[3] * groups,
        outputs,
        stride_in_pixels_x=stride,
        stride_in_pixels_y=stride,
        **options,
    )
    node = mpsnn.MPSCNNConvolutionNode(source, mpsnn.ConvolutionWeights(descriptor, weights, biases))
    node.padding_policy = _padding(padding)
    return node


def _transposed(source: Any, weights: Any, biases: Any, stride: int) -> Any:
    outputs, height, width, inputs = weights.shape
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(
        width, height, inputs, outputs, stride_in_pixels_x=stride, stride_in_pixels_y=stride
    )
    node = mpsnn.MPSCNNConvolutionTransposeNode(source, mpsnn.ConvolutionWeights(descriptor, weights, biases))
    node.padding_policy = mpsnn.MPSNNDefaultPadding(mpsnn.MPSNNPaddingMethod.SizeFull)
    return node


def _fully_connected(source: Any, weights: Any, biases: Any) -> Any:
    outputs, height, width, inputs = weights.shape
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(width, height, inputs, outputs)
    return mpsnn.MPSCNNFullyConnectedNode(source, mpsnn.ConvolutionWeights(descriptor, weights, biases))


def _pool(kind: str, source: Any, kernel: int, stride: int, padding: int) -> Any:
    classes = {
        "max_pool": mpsnn.MPSCNNPoolingMaxNode,
        "average_pool": mpsnn.MPSCNNPoolingAverageNode,
        "l2_pool": mpsnn.MPSCNNPoolingL2NormNode,
    }
    node = classes[kind](source, kernel, kernel, stride, stride)
    node.padding_policy = _padding(padding)
    return node


_NEURONS = {
    "relu": lambda image: mpsnn.MPSCNNNeuronReLUNode(image, 0.0),
    "sigmoid": lambda image: mpsnn.MPSCNNNeuronSigmoidNode(image),
    "tanh": lambda image: mpsnn.MPSCNNNeuronTanHNode(image, 1.0, 1.0),
    "exponential": lambda image: mpsnn.MPSCNNNeuronExponentialNode(image, 1.0, 0.0, -1.0),
    "elu": lambda image: mpsnn.MPSCNNNeuronELUNode(image, 1.0),
    "gelu": lambda image: mpsnn.MPSCNNNeuronGeLUNode(image),
    "dropout": lambda image: mpsnn.MPSCNNDropoutNode(image, 0.5, 1),
    "cross_channel": lambda image: _cross_channel(image),
}


def _cross_channel(image: Any) -> Any:
    node = mpsnn.MPSCNNCrossChannelNormalizationNode(image, 5)
    node.alpha, node.beta, node.delta = 1e-2, 0.75, 1.0
    return node


def _layer_node(case: LayerCase, source: Any, arrays: dict[str, Any]) -> Any:
    if case.kind == "convolution":
        return _convolution(source, arrays["weights"], False, case.stride, case.padding, case.groups)
    if case.kind == "transposed":
        return _transposed(source, arrays["weights"], False, case.stride)
    if case.kind == "fully_connected":
        return _fully_connected(source, arrays["weights"], False)
    if case.kind.endswith("_pool"):
        return _pool(case.kind, source, case.kernel, case.stride, case.padding)
    if case.kind.startswith("batch_norm"):
        node = mpsnn.MPSCNNBatchNormalizationNode(source, mpsnn.BatchNormalizationWeights(case.shape[3]))
        return mpsnn.MPSCNNNeuronReLUNode(node.result_image, 0.0) if case.kind == "batch_norm_relu" else node
    return _NEURONS[case.kind](source)


def _pass_of(operation: str) -> str:
    if "WeightGradient" in operation:
        return WEIGHTS
    return DATA if "Gradient" in operation else FORWARD


def layer(case: LayerCase, which: str) -> dict[str, Timed]:
    arrays = layer_inputs(case)
    if case.kind == "softmax_loss":
        graph, images, states, outputs = _loss_layer(case, arrays)
    elif case.kind == "addition":
        first, second = mpsnn.MPSNNImageNode("x"), mpsnn.MPSNNImageNode("y")
        graph = mpsnn.MPSNNGraph("cpu", mpsnn.MPSNNAdditionNode(first, second).result_image)
        images, states = [arrays["x"], arrays["y"]], []
        outputs = {"result": graph.run(images).numpy()}
    else:
        graph, images, states, outputs = _differentiated_layer(case, arrays)
    operations = graph.profile(images, states, 1).operations
    is_one_pass = which in (FORWARD, DATA, WEIGHTS)
    chosen = [i for i, o in enumerate(operations) if not is_one_pass or _pass_of(o.operation) == which]
    first_time = graph.time_operations(images, states, chosen, 3)[-1]

    def run(seconds: float) -> list[float]:
        return graph.time_operations(images, states, chosen, max(2, min(100000, int(seconds / first_time))))

    names = {"result": FORWARD, "data gradient": DATA, "weight gradient": WEIGHTS}
    outputs = {name: array for name, array in outputs.items() if not is_one_pass or names.get(name, which) == which}
    if case.kind == "dropout":
        outputs = {}  # masks differ between frameworks
    return {"mpsnn": Timed(run, outputs, ", ".join(operations[i].algorithm for i in chosen))}


def _differentiated_layer(case: LayerCase, arrays: dict[str, Any]) -> tuple[Any, list[Any], list[Any], dict[str, Any]]:
    source = mpsnn.MPSNNImageNode("x")
    node = _layer_node(case, source, arrays)
    is_weighted = "weights" in arrays
    if is_weighted:
        state = node.convolution_gradient_state
        state.export_from_graph = True
    (end,) = node.training_graph(mpsnn.MPSNNImageNode("incoming"))
    graph = mpsnn.MPSNNGraph("cpu", [node.result_image, end.result_image])
    by_name = {"x": arrays["x"], "incoming": arrays["incoming"]}
    images = [by_name[name] for name in graph.source_image_handles]
    exported: list[Any] = []
    result, gradient = graph.run(images, destination_states=exported)
    outputs = {"result": result.numpy(), "data gradient": gradient.numpy()}
    if is_weighted:
        outputs["weight gradient"] = np.array(exported[0].gradient_for_weights).reshape(case.weights_shape)
    return graph, images, [], outputs


def _loss_layer(case: LayerCase, arrays: dict[str, Any]) -> tuple[Any, list[Any], list[Any], dict[str, Any]]:
    source = mpsnn.MPSNNImageNode("x")
    (end,) = [mpsnn.MPSCNNLossNode(source, _loss_descriptor(case.shape[3], case.shape))]
    graph = mpsnn.MPSNNGraph("cpu", end.result_image)
    labels = _one_hot(arrays["classes"], case.shape[3])
    state = mpsnn.MPSCNNLossLabels(labels)
    gradient = graph.run([arrays["x"]], [state]).numpy()
    loss = state.loss_image.numpy().sum(dtype=np.float64)
    return graph, [arrays["x"]], [state], {"data gradient": gradient, "loss": np.array([loss])}


# --- networks


def _one_hot(classes: Any, count: int) -> Any:
    return np.eye(count, dtype=np.float32)[classes].reshape(len(classes), 1, 1, count)


def _loss_descriptor(classes: int | None, shape: tuple[int, ...]) -> Any:
    kind = mpsnn.MPSCNNLossType.MeanSquaredError if classes is None else mpsnn.MPSCNNLossType.SoftMaxCrossEntropy
    terms = int(np.prod(shape)) if classes is None else shape[0]
    return mpsnn.MPSCNNLossDescriptor(kind, mpsnn.MPSCNNReductionType.Sum, weight=1 / terms)


def build(network: Network, arrays: list[dict[str, Any]], optimizer: Any) -> tuple[Any, list[Any]]:
    """The network's last image, and its data sources with weights in order of the layers."""
    images: list[Any] = [mpsnn.MPSNNImageNode("image")]  # behind layer i: images[i + 1]
    sources = []
    for layer, values in zip(network.layers, arrays, strict=True):
        inputs, o = [images[source + 1] for source in layer.sources], layer.options
        weights, biases = values.get("weights"), values.get("biases", False)
        if layer.kind == "convolution":
            node = _convolution(inputs[0], weights, biases, o["stride"], o["padding"], o["groups"])
        elif layer.kind == "transposed":
            node = _transposed(inputs[0], weights, biases, o["stride"])
        elif layer.kind == "fully_connected":
            node = _fully_connected(inputs[0], weights, biases)
        elif layer.kind == "batch_norm":
            source = mpsnn.BatchNormalizationWeights(_channels(network, layer.sources[0]), optimizer=optimizer)
            node = mpsnn.MPSCNNBatchNormalizationNode(inputs[0], source)
        elif layer.kind == "relu":
            node = mpsnn.MPSCNNNeuronReLUNode(inputs[0], o["slope"])
        elif layer.kind == "max_pool":
            node = _pool("max_pool", inputs[0], o["kernel"], o["stride"], o["padding"])
        elif layer.kind == "global_average":
            node = mpsnn.MPSNNReductionSpatialMeanNode(inputs[0])
        elif layer.kind == "addition":
            node = mpsnn.MPSNNAdditionNode(*inputs)
        else:
            node = mpsnn.MPSNNConcatenationNode(inputs)
        if weights is not None:
            node.weights.optimizer = optimizer
            sources.append(node.weights)
        images.append(node.result_image)
    return images[-1], sources


def _channels(network: Network, position: int) -> int:
    from mpsnn.bench.networks import layer_shapes

    return layer_shapes(network)[position][3]


def training_graph(network: Network, seed: int = 0) -> tuple[Any, list[Any]]:
    """A graph that trains the network by gradient descent, and its data sources with weights."""
    from mpsnn.bench.networks import layer_shapes

    optimizer = mpsnn.MPSNNOptimizerStochasticGradientDescent(mpsnn.Device("cpu"), network.learning_rate)
    last, sources = build(network, parameters(network, seed), optimizer)
    loss = mpsnn.MPSCNNLossNode(last, _loss_descriptor(network.classes, layer_shapes(network)[-1]))
    ends = [node.result_image for node in loss.training_graph()]
    return mpsnn.MPSNNGraph("cpu", ends, [False] * len(ends)), sources


def labels(network: Network, targets: Any) -> Any:
    return mpsnn.MPSCNNLossLabels(targets if network.classes is None else _one_hot(targets, network.classes))


def step(case: StepCase, options: dict[str, Any]) -> dict[str, Timed]:
    network = case.build()
    graph, sources = training_graph(network)
    images, targets = batch(network)
    state = labels(network, targets)
    before = [] if options.get("measures_memory") else [np.array(source.values["weights"]) for source in sources]
    losses, changes = [], []
    for number in range(options.get("steps", 3)):
        graph.run([images], [state])
        losses.append(float(state.loss_image.numpy().sum(dtype=np.float64)))
        if number == 0:  # later ones amplify what rounding made of the first
            changes = [
                np.ravel(source.values["weights"] - a) for source, a in zip(sources, before, strict=bool(before))
            ]
    outputs = {"losses": np.array(losses), "weight changes": np.concatenate(changes) if changes else np.zeros(0)}
    return {"mpsnn": Timed(lambda seconds: repeat(lambda: graph.run([images], [state]), seconds), outputs)}


def machine_peak(threads: int) -> tuple[float, float]:
    """Floating-point operations and bytes per second that so many threads reach at best."""
    before = mpsnn.num_threads()
    mpsnn.set_num_threads(threads)
    relu = mpsnn.MPSCNNNeuronReLUNode(mpsnn.MPSNNImageNode("x"), 0.0)
    plan = mpsnn.MPSNNGraph("cpu", relu.result_image).plan([(1, 1, 1, 1)])
    mpsnn.set_num_threads(before)
    return plan.peak_flops, plan.peak_bytes


def profile(case: StepCase, runs: int = 5, rows: int = 12) -> str:
    """Where the time of a step goes: by operation, and the slowest ones with their rates and their share of what limits them."""
    network = case.build()
    graph, _ = training_graph(network)
    images, targets = batch(network)
    state = labels(network, targets)
    graph.run([images], [state])
    whole = np.median(repeat(lambda: graph.run([images], [state]), 1.0))
    report = graph.profile([images], [state], runs)
    total = sum(report.seconds)
    kinds: dict[str, float] = {}
    for o, seconds in zip(report.operations, report.seconds, strict=True):
        kinds[o.operation] = kinds.get(o.operation, 0.0) + seconds
    machine = f"{report.peak_flops / 1e9:.0f} GFLOP/s, {report.peak_bytes / 1e9:.1f} GB/s"
    lines = [f"{case.name}: step {whole * 1e3:.2f} ms, operations {total * 1e3:.2f} ms; machine at best {machine}"]
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        lines.append(f"  {kind:36} {seconds * 1e3:9.2f} ms {100 * seconds / total:5.1f} %")
    slowest = sorted(zip(report.seconds, range(len(report.seconds)), strict=True), reverse=True)[:rows]
    for seconds, i in slowest:
        o = report.operations[i]
        rates = f"{o.work / seconds / 1e9:7.1f} GFLOP/s {o.bytes / seconds / 1e9:6.1f} GB/s"
        share = f"{100 * o.least_seconds / seconds:4.0f} % of {o.limit:7}"
        lines.append(f"  {o.operation:28} {o.result:20} {seconds * 1e3:8.2f} ms {rates} {share}  {o.algorithm}")
    return "\n".join(lines)
