# SPDX-License-Identifier: Apache-2.0
"""Runs a small graph and its gradients on an engine, for tests that compare numbers.

A test writes a builder: a function that takes the graph's input image nodes and returns its last filter node (and the
trained nodes whose parameter gradients it wants). Everything else, the training graph from an explicit incoming
gradient, the handles, the exports, is here.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import mpsnn
import numpy as np

DTYPES = {"reference": np.float64, "cpu": np.float32}


def tolerance(scale, terms, dtype=np.float32):
    """The largest difference that rounding explains: ``scale * sqrt(terms) * epsilon(dtype)``.

    ``scale`` is the sum of the absolute values of what was added up (for one element, the size of the result) and ``terms``
    how many roundings went into it. A rounding is off by at most half an epsilon of a partial sum, which ``scale`` bounds.
    The signs of the errors are as good as random, so they grow like a random walk: with the root of their number. The
    factor of two between half an epsilon and an epsilon leaves room for the walk's tail.
    """
    return scale * np.sqrt(max(1, terms)) * np.finfo(dtype).eps


def assert_close(actual, expected, scale, terms, dtype=np.float32, what="result"):
    """Shapes equal and every element within tolerance(); the worst one is named. NaNs must meet NaNs."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    allowed = np.broadcast_to(tolerance(np.asarray(scale, np.float64), terms, dtype), actual.shape)
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0, np.abs(actual - expected))
    if np.all(error <= allowed):
        return
    ratio = np.where(error <= allowed, 0, np.where(allowed > 0, error / np.where(allowed > 0, allowed, 1), np.inf))
    worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, ratio)), actual.shape)
    raise AssertionError(
        f"{what}{list(map(int, worst))} is {actual[worst]!r}, expected {expected[worst]!r}: off by {error[worst]:.3g}, allowed {allowed[worst]:.3g}"
    )


@dataclass
class Evaluation:
    """One step: the result image, the gradient of every input (None for inputs that get none, as labels do), and the
    exported states in the builder's order."""

    result: np.ndarray
    gradients: list = field(default_factory=list)
    states: list = field(default_factory=list)


class Network:
    """A graph made by ``build(*image_nodes)`` on an engine, with gradients when ``differentiate`` is set.

    ``build`` returns the last filter node, or that node and a list of the trained nodes whose gradient states are wanted.
    """

    def __init__(self, engine, build, inputs=1, differentiate=True):
        self.dtype = DTYPES[engine]
        self.engine = engine
        self.names = [f"input {i}" for i in range(inputs)]
        built = build(*[mpsnn.MPSNNImageNode(name) for name in self.names])
        self.node, trained = built if isinstance(built, tuple) else (built, [])
        self.state_names = []
        for i, node in enumerate(trained if differentiate else []):
            state = getattr(node, "convolution_gradient_state", None) or node.result_state
            state.handle = f"state {i}"
            state.export_from_graph = True
            self.state_names.append(state.handle)
        self.gradient_names = []
        results = [self.node.result_image]
        if differentiate:
            for end in self.node.training_graph(mpsnn.MPSNNImageNode("incoming")):
                if end.result_image.handle in self.names:
                    self.gradient_names.append(end.result_image.handle)
                    results.append(end.result_image)
        self.graph = mpsnn.MPSNNGraph(engine, results)

    def run(self, images, incoming=None):
        given = dict(zip(self.names, images, strict=True), incoming=incoming)
        arrays = [np.ascontiguousarray(given[name], self.dtype) for name in self.graph.source_image_handles]
        states = []
        results = self.graph.run(arrays, destination_states=states)
        results = results if isinstance(results, list) else [results]
        values = [np.array(image.numpy()) for image in results]
        by_name = dict(zip(self.gradient_names, values[1:], strict=True))
        exported = dict(zip(self.graph.result_state_handles, states, strict=True))
        return Evaluation(
            values[0], [by_name.get(name) for name in self.names], [exported[name] for name in self.state_names]
        )

    def uses(self, algorithm, image, incoming):
        """Whether a kernel of that algorithm runs for one image and the incoming gradient."""
        shapes = {"input 0": image.shape, "incoming": incoming.shape}
        plan = self.graph.plan([shapes[name] for name in self.graph.source_image_handles])
        return any(operation.algorithm.startswith(algorithm) for operation in plan.operations)


def evaluate(engine, build, images, incoming=None):
    """Result (and gradients, when there is an incoming gradient) of one step on an engine."""
    return Network(engine, build, len(images), incoming is not None).run(images, incoming)


def result_of(build, *images, engine="reference"):
    return evaluate(engine, build, images).result


def same_on_both(build, images, incoming, scale, gradient_scale, terms):
    """For element-wise and similar nodes: cpu against reference, result and every image gradient."""
    reference, cpu = (evaluate(engine, build, images, incoming) for engine in ("reference", "cpu"))
    assert_close(cpu.result, reference.result, scale, terms)
    for i, (got, expected) in enumerate(zip(cpu.gradients, reference.gradients, strict=True)):
        if expected is not None:
            assert_close(got, expected, gradient_scale, terms, what=f"gradient of input {i}")
    return reference


# --- central differences

STEP = np.cbrt(np.finfo(np.float64).eps)  # where truncation (step ** 2) and rounding (epsilon / step) are alike


def difference_tolerance(scale, step=STEP, curvature=1):
    """What a central difference of a float64 function may be off: ``curvature * scale * step ** 2`` from truncation
    (``curvature``: third derivative over scale, 0 for functions linear in the variable) and ``scale * epsilon / step`` from
    rounding. ``scale`` is the sum of absolute values of everything that the differenced number adds up."""
    return scale * (curvature * step**2 + 4 * np.finfo(np.float64).eps / step)


def image_difference(network, images, incoming, which):
    """d sum(incoming * result) / d images[which], element by element."""
    images = [np.array(image, np.float64) for image in images]
    x = images[which]
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        sums = []
        for value in (kept + STEP, kept - STEP):
            x[index] = value
            sums.append((incoming * network.run(images).result).sum())
        x[index] = kept
        gradient[index] = (sums[0] - sums[1]) / ((kept + STEP) - (kept - STEP))
    return gradient


PARAMETER_STEP = 2.0**-10


def parameter_difference(network, images, incoming, source, name):
    """The same for a parameter of a data source. Its numbers are float32: the difference is taken over the exact values
    that the rounded sums come to."""
    values = np.array(source.values[name], np.float32)
    gradient = np.zeros(values.shape, np.float64)
    for index in np.ndindex(values.shape):
        sums, places = [], []
        for step in (PARAMETER_STEP, -PARAMETER_STEP):
            moved = values.copy()
            moved[index] += np.float32(step)
            places.append(float(moved[index]))
            source.set_values(**{name: moved})
            network.graph.reload_from_data_sources()
            sums.append((incoming * network.run(images).result).sum())
        gradient[index] = (sums[0] - sums[1]) / (places[0] - places[1])
    source.set_values(**{name: values})
    network.graph.reload_from_data_sources()
    return gradient


def assert_differences_agree(build, images, incoming, curvature=1, scale=None):
    """Every image gradient of the reference engine equals central differences of its result."""
    network = Network("reference", build, len(images))
    forward = Network("reference", build, len(images), differentiate=False)
    got = network.run(images, incoming)
    if scale is None:
        scale = np.abs(incoming * got.result).sum() + np.abs(incoming).sum()
    for i, gradient in enumerate(got.gradients):
        if gradient is None:
            continue
        assert gradient.shape == images[i].shape
        expected = image_difference(forward, images, incoming, i)
        error = np.abs(gradient - expected).max(initial=0)
        assert error <= difference_tolerance(scale, curvature=curvature), f"input {i}: off by {error}"
    return got


# --- saving


def parameter_arrays(state):
    names = (
        "gradient_for_weights",
        "gradient_for_biases",
        "gradient_for_gamma",
        "gradient_for_beta",
        "mean",
        "variance",
    )
    return {name: np.array(getattr(state, name)) for name in names if getattr(state, name, None) is not None}


def assert_survives_saving(build, images, incoming):
    """A graph that was saved and loaded gives the same bits: result, gradients and exported states, on both engines."""
    for engine in DTYPES:
        network = Network(engine, build, len(images))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.safetensors"
            network.graph.save(path)
            before = network.run(images, incoming)
            network.graph = mpsnn.MPSNNGraph.load(path, engine)
        after = network.run(images, incoming)
        assert before.result.tobytes() == after.result.tobytes()
        assert before.result.shape == after.result.shape
        assert len(before.gradients) == len(after.gradients)
        for first, second in zip(before.gradients, after.gradients, strict=True):
            assert (first is None and second is None) or first.tobytes() == second.tobytes()
        for first, second in zip(before.states, after.states, strict=True):
            first, second = parameter_arrays(first), parameter_arrays(second)
            assert first.keys() == second.keys()
            assert all(first[name].tobytes() == second[name].tobytes() for name in first)


# --- data


def normal(seed, *shape):
    """Seeded numbers that float32 holds exactly, so that both engines see the same."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def small_integers(seed, *shape):
    """Few distinct values: many ties."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float64)


def row(*values):
    """The one-dimensional images of the specification's golden vectors: H = 1, one channel."""
    return np.array(values, np.float64).reshape(1, 1, -1, 1)
