# SPDX-License-Identifier: Apache-2.0
"""Calls every public class with random arguments, hostile ones among them, and runs the graphs of what that makes.

python tests/fuzz/constructors.py [count] [seed] [progress file]

Each call either constructs or raises an error of ours, a TypeError, or a MemoryError beyond 3 GB. What constructs is put into a graph, which is planned and run on both
engines over tiny images: they refuse it alike, or their results agree. The progress file holds the seed of the running call, for
when the process ends by itself; a seed alone repeats its call: `constructors.py 1 SEED`.
"""

import faulthandler
import inspect
import math
import re
import resource
import signal
import sys

import mpsnn
import numpy as np
from mpsnn import _mpsnn

HOSTILE = [
    None, 0, -1, 1, 2, 3, 7, 2**15, 2**16, 2**28, 2**30, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63, -(2**63), 2**64, 2**100, 0.5, -0.5, 1e300,
    float("nan"), float("inf"), -float("inf"), True, "", "x", "\udc80", b"x", [], [None], {}, (1, 2), object(), np.zeros(3), np.zeros((0, 2), complex),
    np.float32(2), np.int64(3), int, Ellipsis, 1j,
]  # fmt: skip
KINDS = [one for one in vars(_mpsnn).values() if inspect.isclass(one) and "__init__(" in (one.__init__.__doc__ or "")]
SECONDS_PER_CALL, MOST_BYTES = 20, 3 << 30


class Boom(Exception):
    """What a user's callback raises; it reaches the caller as it is."""


def signatures(kind):
    """The parameters of each constructor: (name, type as text) pairs."""
    found = []
    for arguments in re.findall(r"__init__\((self: .*)\) -> None", kind.__init__.__doc__):
        pairs, depth, start = [], 0, 0
        for i, c in enumerate(arguments + ","):
            depth += (c in "[(") - (c in "])")
            if c == "," and depth == 0:
                pairs.append(arguments[start:i].strip())
                start = i + 1
        found.append([tuple(re.split(": | = ", pair)[:2]) for pair in pairs[1:] if ":" in pair])
    return found


class Case:
    """One random graph, or one object that is no node."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.channels, self.height, self.width = (int(n) for n in self.random.integers(1, 6, 3))
        self.images = [mpsnn.MPSNNImageNode("x"), mpsnn.MPSNNImageNode("y")]
        self.states, self.is_hostile = [], False
        self.hostile_share = self.random.choice([0, 0.05, 0.3])

    def one_in(self, n):
        return self.random.integers(n) == 0

    def of(self, values):
        return values[int(self.random.integers(len(values)))]

    def value(self, name, kind):
        """A value for a parameter: by its type and name, or something else altogether."""
        if self.random.random() < self.hostile_share:
            self.is_hostile = True
            return self.of(HOSTILE + self.images + self.states)
        return self.plausible(name, kind)

    def plausible(self, name, kind):
        kind = kind.replace("mpsnn._mpsnn.", "")
        base = kind.split(" | ")[0]
        if kind.endswith("None") and self.one_in(2):
            return None
        if "Sequence[MPSNNImageNode" in kind:
            return [self.of(self.images) for _ in range(int(self.random.integers(1, 4)))]
        if "Sequence" in kind or "terms" in name or name in ("a_data", "weights", "biases", "array"):
            return self.numbers(name)
        if "SupportsInt" in kind:
            return (
                self.channels if "channels" in name or name == "number_of_classes" else int(self.random.integers(1, 5))
            )
        if "SupportsFloat" in kind:
            return float(self.random.choice([0.0, 0.25, 0.5, 1.0, 2.0, -1.0], p=[0.1, 0.3, 0.2, 0.2, 0.1, 0.1]))
        if base == "bool":
            return bool(self.one_in(2))
        if base == "str":
            return self.of(["he", "xavier", "zeros"]) if name == "initializer" else "label"
        return self.object(name, getattr(mpsnn, base, None))

    def numbers(self, name):
        if name == "weights":
            return None
        return self.random.normal(size=int(self.of([self.channels, self.channels, 1, 2, 3]))).astype(np.float32)

    def object(self, name, kind):
        """An instance of a class, made by its constructor, or something for a parameter that takes any object."""
        if kind is None:
            choices = {
                "device": "cpu",
                "handle": "name",
                "output_size": (3, 2, 1),
                "labels": np.zeros((1, 1, 1, 2), np.float32),
            }
            return choices.get(name)
        if hasattr(kind, "__members__"):
            return self.of(list(kind.__members__.values()))
        if kind is mpsnn.MPSNNImageNode:
            return self.of(self.images)
        if issubclass(kind, mpsnn.MPSNNStateNode):
            fitting = [state for state in self.states if isinstance(state, kind)]
            return self.of(fitting) if fitting else None
        if issubclass(kind, mpsnn.MPSCNNConvolutionDataSource):
            return self.convolution()
        if kind is mpsnn.MPSCNNBatchNormalizationDataSource:
            return mpsnn.BatchNormalizationWeights(self.channels)
        if kind is mpsnn.MPSCNNInstanceNormalizationDataSource:
            return mpsnn.InstanceNormalizationWeights(self.channels)
        if kind is mpsnn.MPSCNNGroupNormalizationDataSource:
            return mpsnn.GroupNormalizationWeights(self.channels, self.of([1, self.channels]))
        if kind is mpsnn.MPSNNOptimizer:
            return mpsnn.MPSNNOptimizerAdam(None, 0.01)
        made = self.make(kind) if kind in KINDS else None
        return made

    def convolution(self):
        sizes = self.random.integers(1, 4, 3)
        about = mpsnn.MPSCNNConvolutionDescriptor(int(sizes[0]), int(sizes[1]), self.channels, int(sizes[2]))
        if self.one_in(3):
            about = self.make(mpsnn.MPSCNNConvolutionDescriptor)
        if self.one_in(4) or self.random.random() < self.hostile_share:
            return Source(self, about)
        return mpsnn.ConvolutionWeights(about, seed=int(self.random.integers(9)))

    def make(self, kind):
        arguments = [(name, self.value(name, kind)) for name, kind in self.of(signatures(kind))]
        split = int(self.random.integers(len(arguments) + 1))
        keywords = dict(arguments[split:])
        if self.random.random() < self.hostile_share / 3:
            keywords[self.of(["no_such_argument", "groups", "label", "dilation_rate_x", "fused_neuron_descriptor"])] = (
                self.of(HOSTILE)
            )
        positional = [value for _, value in arguments[:split]]
        return kind(*positional, **keywords)

    def set_properties(self, one):
        """Writes random values to a property or two."""
        names = [n for n, p in inspect.getmembers(type(one), lambda p: isinstance(p, property)) if p.fset]
        for name in self.random.permutation(names)[: int(self.random.integers(3))]:
            current = getattr(one, name)
            if name == "padding_policy" and not self.one_in(3):
                value = self.of([mpsnn.ExplicitPadding, mpsnn.MPSNNDefaultPadding])
                setattr(one, name, self.make(value))
            elif self.random.random() < self.hostile_share:
                self.is_hostile = True
                setattr(one, name, self.of(HOSTILE))
            elif isinstance(current, float) and math.isfinite(current):
                setattr(one, name, float(self.random.choice([0.25, 0.5, 1.0, 2.0])))
            elif isinstance(current, int) and hasattr(type(current), "__members__"):
                setattr(one, name, self.of(list(type(current).__members__.values())))

    def source_arrays(self, graph):
        shape = (int(self.random.integers(3)), self.height, self.width, self.channels)
        return [self.random.normal(size=shape).astype(np.float32) for _ in graph.source_image_handles]


class Source(mpsnn.MPSCNNConvolutionDataSource):
    """A data source whose methods may return anything, or raise."""

    def __init__(self, case, about):
        super().__init__()
        self.answers = {
            "descriptor": about, "data_type": mpsnn.MPSDataType.Float32, "bias_terms": None, "label": "own", "load": True, "purge": None,
            "weights": mpsnn.ConvolutionWeights(about).values["weights"], "weights_quantization_type": mpsnn.MPSCNNWeightsQuantizationType(0),
            "lookup_table_for_uint8_kernel": None, "ranges_for_uint8_kernel": None,
        }  # fmt: skip
        if case.one_in(3):
            case.is_hostile = True
            types = [
                mpsnn.MPSDataType.UInt8,
                mpsnn.MPSDataType.UInt32,
                mpsnn.MPSDataType.Float16,
                mpsnn.MPSDataType.Invalid,
            ]
            arrays = [np.zeros(n, t) for n in (0, 3, 256) for t in (np.uint8, np.uint32, np.float16, np.float32)]
            self.answers[case.of(list(self.answers))] = case.of([*HOSTILE, *types, *arrays, Boom("in a callback")])

    def answer(self, name):
        value = self.answers[name]
        if isinstance(value, Boom):
            raise value
        return value


for _name in ("descriptor", "data_type", "bias_terms", "label", "load", "purge", "weights", "weights_quantization_type",
              "lookup_table_for_uint8_kernel", "ranges_for_uint8_kernel"):  # fmt: skip
    setattr(Source, _name, lambda self, name=_name: self.answer(name))

# MemoryError is what NumPy raises, too, for an array that does not fit.
EXPECTED = (mpsnn.Error, TypeError, MemoryError, Boom)


def run(case, node, with_gradient):
    """The results of both engines, or the kinds of their errors."""
    images = [node.result_image]
    if with_gradient:
        images += [end.result_image for end in node.training_graph()]
    outcomes = []
    # Both before either runs: a step changes data sources.
    graphs = [mpsnn.MPSNNGraph(engine, images) for engine in ("cpu", "reference")]
    state = case.random.bit_generator.state
    for graph in graphs:
        case.random.bit_generator.state = state
        try:
            given = case.source_arrays(graph)
            labels = [
                mpsnn.MPSCNNLossLabels(np.ones_like(given[0] if given else np.zeros((1, 1, 1, 1), np.float32)))
                for _ in graph.source_state_handles
            ]
            graph.plan([array.shape for array in given])
            with_labels = graph.run(given, labels)
            outcomes.append(
                [result.numpy().copy() for result in (with_labels if isinstance(with_labels, list) else [with_labels])]
            )
        except EXPECTED as error:
            outcomes.append(type(error).__name__)
    return outcomes


def compare(case, node, outcomes):
    """Results of both engines: alike in shape, and in numbers where float32 can hold them and nothing hostile scaled them."""
    cpu, reference = outcomes
    if isinstance(cpu, str) or isinstance(reference, str):
        assert cpu == reference, f"one engine refuses what the other takes: {cpu!r:.60}, {reference!r:.60}"
        return False
    for one, other in zip(cpu, reference, strict=True):
        assert one.shape == other.shape
        if case.is_hostile or not other.size or not np.isfinite(other).all() or np.abs(other).max() > 1e30:
            continue
        # Inputs are up to 5, factors up to 2, and what cancels is a product of two of them. A sum has up to 9 x 9 x 9 terms, in
        # the gradient of an image that is padded from 1 to 9 each way, and is off by at most as many roundings.
        # A normalization divides by a deviation, which epsilon keeps above its root.
        scale = max(float(np.abs(other).max()), (2 * 5) ** 2)
        scale *= 1e-5**-0.5 if "Normalization" in type(node).__name__ else 1
        difference = np.abs(one.astype(np.float64) - other).max()
        bound = scale * 9**3 * np.finfo(np.float32).eps
        assert difference <= bound, f"the engines differ by {difference}, more than {bound}"
    return True


def call(seed):
    """One call; what came of it."""
    case = Case(seed)
    kind = KINDS[seed % len(KINDS)]
    try:
        with_gradient = bool(case.one_in(2))
        if issubclass(kind, mpsnn.MPSNNFilterNode) and "Gradient" in kind.__name__:
            # A forward node first, so that there is a state to take the gradient with.
            forwards = [other for other in KINDS if other.__name__ == kind.__name__.replace("Gradient", "")]
            if kind is mpsnn.MPSCNNNeuronGradientNode:
                forwards = [other for other in KINDS if issubclass(other, mpsnn.MPSCNNNeuronNode)]
            if forwards:
                forward = case.make(case.of(forwards))
                case.images.append(forward.result_image)
                case.states += list(forward.result_states)
            with_gradient = False
        one = case.make(kind)
        case.set_properties(one)
    except EXPECTED:
        return "refused"
    if not isinstance(one, mpsnn.MPSNNFilterNode):
        return "made"
    try:
        outcomes = run(case, one, with_gradient)
    except EXPECTED:
        return "made"
    return "run" if compare(case, one, outcomes) else "made"


def main(count=5000, seed=0, progress=None):
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    mpsnn.set_num_threads(1)
    counts = dict.fromkeys(("refused", "made", "run"), 0)
    for current in range(seed, seed + count):
        if progress:
            with open(progress, "w") as file:
                file.write(f"{current} {KINDS[current % len(KINDS)].__name__}")
        signal.alarm(SECONDS_PER_CALL)
        try:
            counts[call(current)] += 1
        except BaseException as error:
            error.add_note(f"seed {current}, {KINDS[current % len(KINDS)].__name__}") if hasattr(
                error, "add_note"
            ) else None
            raise
    print(f"{count} calls of {len(KINDS)} classes: {counts}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]), *sys.argv[3:4])
