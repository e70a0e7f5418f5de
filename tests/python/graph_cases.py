# SPDX-License-Identifier: Apache-2.0
"""Small graphs, arrays and data sources that several test files use."""

import mpsnn
import numpy as np

ENGINES = ("cpu", "reference")
STYLES = mpsnn.MPSNNTrainingStyle


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_hot(classes, count, seed=0):
    chosen = np.random.default_rng(seed).integers(0, classes, count)
    return np.eye(classes, dtype=np.float32)[chosen].reshape(count, 1, 1, classes)


def tolerance(expected, terms, dtype=np.float32):
    """What rounding may change in values that are sums of so many products."""
    return max(np.abs(expected).max(initial=0.0), 1e-30) * np.sqrt(terms) * np.finfo(dtype).eps


def weights(inputs, outputs, kernel=3, label="conv", seed=1, optimizer=None, **properties):
    descriptor = mpsnn.MPSCNNConvolutionDescriptor(kernel, kernel, inputs, outputs, **properties)
    return mpsnn.ConvolutionWeights(descriptor, seed=seed, label=label, optimizer=optimizer)


def sgd(rate=0.1, momentum=0.0):
    descriptor = mpsnn.MPSNNOptimizerDescriptor(learning_rate=rate)
    return mpsnn.MPSNNOptimizerStochasticGradientDescent(None, momentum, False, descriptor)


def adam(rate=0.01):
    return mpsnn.MPSNNOptimizerAdam(None, rate)


def loss(kind="SoftMaxCrossEntropy", **options):
    return mpsnn.MPSCNNLossDescriptor(mpsnn.MPSCNNLossType[kind], mpsnn.MPSCNNReductionType.Sum, **options)


def class_name(node):
    return type(node).__name__


def record(log):
    """A node handler that writes down what it is called with."""

    def handler(*arguments):
        log.append(arguments)

    return handler


class ThreeLayers:
    """Two convolutions and a fully connected node on 6 x 6 x 2 images, three classes; every data source may be replaced."""

    def __init__(self, sources=None, style=STYLES.UpdateDeviceGPU, engine="cpu", optimizer=adam, normalization=None):
        made = sources or {}
        self.sources = [
            made.get("first") or weights(2, 4, label="first", seed=1, optimizer=optimizer()),
            made.get("middle") or weights(4, 3, label="middle", seed=2, optimizer=optimizer()),
            made.get("last") or weights(3, 3, kernel=6, label="last", seed=3, optimizer=optimizer()),
        ]
        node = self.first = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("images"), self.sources[0])
        node.training_style = style
        if normalization:
            node = mpsnn.MPSCNNBatchNormalizationNode(node.result_image, normalization)
            node.training_style = style
        node = mpsnn.MPSCNNNeuronReLUNode(node.result_image, 0.0)
        node = self.middle = mpsnn.MPSCNNConvolutionNode(node.result_image, self.sources[1])
        node.training_style = style
        node = self.last = mpsnn.MPSCNNFullyConnectedNode(node.result_image, self.sources[2])
        node.training_style = style
        node = self.loss = mpsnn.MPSCNNLossNode(node.result_image, loss(weight=1 / 8))
        self.graph = mpsnn.MPSNNGraph(engine, node.training_graph()[0].result_image, False)

    def step(self, seed=0, images=None):
        images = numbers(8, 6, 6, 2, seed=seed) if images is None else images
        labels = mpsnn.MPSCNNLossLabels(one_hot(3, len(images), seed=seed))
        self.graph.run([images], [labels])
        return labels.loss_image.numpy().copy()

    def weights(self):
        """Every number that the kernels use, as bytes."""
        states = [self.graph.export_weights(source) for source in self.sources]
        return [array.tobytes() for state in states for array in (state.weights, state.biases) if array is not None]

    def state(self):
        """Weights, and what the optimizers of our own data sources remember."""
        own = [source for source in self.sources if isinstance(source, mpsnn.ConvolutionWeights)]
        history = [np.array(vector).tobytes() for source in own for vector in source.history]
        values = [np.array(value).tobytes() for source in own for value in source.values.values()]
        return self.weights(), history, values, [getattr(source.optimizer, "time_step", 0) for source in own]


class ArraySource(mpsnn.MPSCNNConvolutionDataSource):
    """A data source in Python over arrays of its own. Everything that a test may want to break is an attribute."""

    def __init__(self, inputs=2, outputs=3, kernel=3, label="python", seed=1, **properties):
        super().__init__()
        self.about = mpsnn.MPSCNNConvolutionDescriptor(kernel, kernel, inputs, outputs, **properties)
        drawn = mpsnn.ConvolutionWeights(self.about, seed=seed)
        self.values = np.array(drawn.values["weights"])
        self.biases = np.zeros(outputs, np.float32)
        self.name, self.kind, self.accepts = label, mpsnn.MPSDataType.Float32, True
        self.calls = []

    def descriptor(self):
        return self.about

    def data_type(self):
        return self.kind

    def weights(self):
        self.calls.append("weights")
        return self.values

    def bias_terms(self):
        return self.biases

    def label(self):
        return self.name

    def load(self):
        self.calls.append("load")
        return self.accepts

    def purge(self):
        self.calls.append("purge")


class CpuSource(ArraySource):
    """Plain descent in the completion phase."""

    rate = 0.1

    def update(self, gradient_state, source_state):
        self.calls.append("update")
        self.values = (source_state.weights - self.rate * gradient_state.gradient_for_weights).astype(np.float32)
        self.biases = (source_state.biases - self.rate * gradient_state.gradient_for_biases).astype(np.float32)
        return True


class GpuSource(ArraySource):
    """An optimizer recorded on the command buffer, with history in vectors of its own."""

    def __init__(self, *args, optimizer=None, **options):
        super().__init__(*args, **options)
        self.optimizer = optimizer or adam()
        counts = [self.values.size] * self.optimizer.history_count + [self.biases.size] * self.optimizer.history_count
        self.vectors = [mpsnn.MPSVector(count) for count in counts]

    def update_with_command_buffer(self, command_buffer, gradient_state, source_state):
        self.calls.append("update_with_command_buffer")
        self.optimizer.encode(command_buffer, gradient_state, source_state, self.vectors, source_state)
        return source_state


LAYERS = ("first", "middle", "last")
SHAPES = {"first": (2, 4, 3), "middle": (4, 3, 3), "last": (3, 3, 6)}


def source(kind, layer, **options):
    """A data source for a layer of ThreeLayers, of a kind that takes what ArraySource takes."""
    inputs, outputs, kernel = SHAPES[layer]
    return kind(inputs, outputs, kernel, label=layer, seed=1 + LAYERS.index(layer), **options)
