# SPDX-License-Identifier: Apache-2.0
"""Convolution with weights of one bit: three products, packed words, input and output terms, beta scaling."""

import mpsnn
import numpy as np
import pytest
from engines import DTYPES, assert_close, normal, result_of
from error_cases import caught, run
from geometry_cases import window_cases
from hypothesis import given, settings
from hypothesis import strategies as st

Type, Flags = mpsnn.MPSCNNBinaryConvolutionType, mpsnn.MPSCNNBinaryConvolutionFlags
TYPES = pytest.mark.parametrize("type", [Type.BinaryWeights, Type.XNOR, Type.AND], ids=lambda t: t.name)
ENGINES = pytest.mark.parametrize("engine", ["reference", "cpu"])


class Bits(mpsnn.MPSCNNConvolutionDataSource):
    """Packed bits of (O, kH, kW, I) booleans: channel 32 w + b is bit b of word w. Bits behind the last channel are set."""

    def __init__(self, bits, biases=None, **properties):
        super().__init__()
        outputs, height, width, inputs = bits.shape
        self.about = mpsnn.MPSCNNConvolutionDescriptor(width, height, inputs, outputs, **properties)
        words = -(-inputs // 32)
        padded = np.ones((outputs, height, width, 32 * words), np.uint64)
        padded[..., :inputs] = bits
        powers = np.left_shift(np.uint64(1), np.arange(32, dtype=np.uint64))
        self.words = (padded.reshape(outputs, height, width, words, 32) * powers).sum(-1).astype(np.uint32)
        self.biases, self.kind = biases, mpsnn.MPSDataType.UInt32

    def descriptor(self):
        return self.about

    def data_type(self):
        return self.kind

    def weights(self):
        return self.words

    def bias_terms(self):
        return self.biases

    def label(self):
        return "bits"


def random_bits(seed, *shape):
    return np.random.default_rng(seed).integers(0, 2, shape).astype(bool)


def node_of(source, type, flags=Flags.None_, terms=None, scale=None, policy=None, fully_connected=False):
    node = mpsnn.MPSCNNBinaryFullyConnectedNode if fully_connected else mpsnn.MPSCNNBinaryConvolutionNode

    def build(image):
        made = (
            node(image, source, scale, type, flags)
            if scale is not None
            else node(image, source, *(terms or [None] * 4), type, flags)
        )
        if policy:
            made.padding_policy = policy
        return made

    return build


def formula(x, bits, axes, type, uses_beta, output_bias, output_scale, input_bias, input_scale):
    """MPS_SEMANTICS 7.9 tap by tap; pixels outside contribute nothing (OQ-21). Also the size of what is added up."""
    u = (x + input_bias) * input_scale
    y, z = axes
    n, c, outputs = x.shape[0], x.shape[3], bits.shape[0]
    sums, sizes, magnitudes = (np.zeros((n, y.output, z.output, k)) for k in (outputs, outputs, 1))
    for i in range(y.output):
        for j in range(z.output):
            for ky in range(y.kernel):
                for kx in range(z.kernel):
                    yy = i * y.stride + ky * y.dilation - y.before
                    xx = j * z.stride + kx * z.dilation - z.before
                    if not (0 <= yy < x.shape[1] and 0 <= xx < x.shape[2]):
                        continue
                    pixel, bit = u[:, yy, xx, None, :], bits[None, :, ky, kx, :]
                    if type == Type.BinaryWeights:
                        product = np.where(bit, pixel, -pixel)
                    elif type == Type.XNOR:
                        product = np.where((pixel >= 0) == bit, 1.0, -1.0)
                    else:
                        product = ((pixel >= 0) & bit).astype(float)
                    sums[:, i, j] += product.sum(-1)
                    sizes[:, i, j] += np.abs(product).sum(-1)
                    magnitudes[:, i, j] += np.abs(pixel).sum(-1)
    beta = magnitudes / c / (y.kernel * z.kernel) if uses_beta else 1
    return sums * output_scale * beta + output_bias, sizes * np.abs(output_scale) * beta + np.abs(output_bias)


@TYPES
@settings(max_examples=60)
@given(
    window_cases(dilates=True, largest=6, tensorflow=False),
    st.sampled_from([1, 7, 31, 32, 33, 64, 70]),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
)
def test_both_engines_give_the_printed_result(type, case, channels, outputs, uses_beta, has_terms):
    """Odd geometry; words that are full, that are not, and more than one; an input that a term moves across 0."""
    seed = case.seed
    x = normal(seed, *case.shape[:3], channels)
    bits = random_bits(seed + 1, outputs, *case.kernel, channels)
    source = Bits(
        bits,
        stride_in_pixels_x=case.stride[1],
        stride_in_pixels_y=case.stride[0],
        dilation_rate_x=case.dilation[1],
        dilation_rate_y=case.dilation[0],
    )
    terms = None
    numbers = [np.zeros(outputs), np.ones(outputs), np.zeros(channels), np.ones(channels)]
    if has_terms:
        sizes = (outputs, outputs, channels, channels)
        terms = [np.random.default_rng(seed + i).integers(-4, 5, n) / 4 for i, n in enumerate(sizes)]
        terms[3] = np.where(terms[3] == 0, 1, terms[3])
        numbers = terms
        x[np.abs(x + terms[2]) < 2**-10] += 0.125  # rounding decides the sign there
    expected, size = formula(x, bits, case.axes(), type, uses_beta, *numbers)
    flags = Flags.UseBetaScaling if uses_beta else Flags.None_
    policy = case.padding.policy()
    for engine, dtype in DTYPES.items():
        build = node_of(source, type, flags, terms, policy=policy)
        got = result_of(build, x, engine=engine)
        assert got.shape == (case.images, *case.result_size(), outputs)
        assert_close(got, expected, size + np.abs(x).max(initial=0) * uses_beta, case.taps * channels + 8, dtype)


@TYPES
@ENGINES
def test_a_scale_value_takes_the_place_of_the_scales_and_biases_come_from_the_source(engine, type):
    x, bits = normal(0, 2, 3, 4, 40), random_bits(1, 3, 1, 1, 40)
    biases = np.array([0.5, -1, 2], np.float32)
    got, plain = (
        result_of(build, x, engine=engine)
        for build in (node_of(Bits(bits, biases), type, scale=0.25), node_of(Bits(bits), type))
    )
    assert_close(got, 0.25 * plain + biases, np.abs(plain) + 2, 44, got.dtype)


@ENGINES
def test_zero_has_the_sign_of_positive_numbers(engine):
    x = np.array([0.0, -0.0, -1, 1]).reshape(1, 1, 1, 4)
    for type, bits, expected in (
        (Type.XNOR, [1, 1, 0, 1], 4),
        (Type.AND, [1, 1, 1, 0], 2),
        (Type.AND, [1, 1, 1, 1], 3),
    ):
        source = Bits(np.array(bits, bool).reshape(1, 1, 1, 4))
        assert result_of(node_of(source, type), x, engine=engine).ravel().tolist() == [expected]


@TYPES
@ENGINES
def test_a_fully_connected_node_takes_the_whole_image(engine, type):
    x, bits = normal(0, 2, 3, 4, 35), random_bits(1, 5, 3, 4, 35)
    got = result_of(node_of(Bits(bits), type, fully_connected=True), x, engine=engine)
    axes = [type_axis(3), type_axis(4)]
    expected, size = formula(x, bits, axes, type, False, np.zeros(5), np.ones(5), np.zeros(35), np.ones(35))
    assert got.shape == (2, 1, 1, 5)
    assert_close(got, expected, size, 420, got.dtype)


def type_axis(size):
    return mpsnn.resolve_axis(mpsnn.MPSNNPaddingMethod.SizeValidOnly, size, size, 1, 1, "x")


@ENGINES
def test_a_fused_neuron_comes_last(engine):
    x, bits = normal(0, 2, 3, 4, 5), random_bits(1, 3, 2, 2, 5)
    neuron = mpsnn.MPSNNNeuronDescriptor(mpsnn.MPSCNNNeuronType.ReLU, 0.5)
    plain = result_of(node_of(Bits(bits), Type.BinaryWeights), x, engine=engine)
    fused = result_of(node_of(Bits(bits, fused_neuron_descriptor=neuron), Type.BinaryWeights), x, engine=engine)
    assert_close(fused, np.where(plain < 0, 0.5 * plain, plain), np.abs(plain), 2, fused.dtype)


@TYPES
@pytest.mark.parametrize("fully_connected", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_saved_node_gives_the_same_bits(type, fully_connected, scaled, tmp_path):
    source, x = Bits(random_bits(1, 2, 2, 3, 35), np.array([0.5, -1], np.float32)), normal(0, 2, 2, 3, 35)
    terms = None if scaled else [[0.5, 0.25], [1, 2], [0.125] * 35, [2] * 35]
    build = node_of(source, type, Flags.UseBetaScaling, terms, 0.3 if scaled else None, None, fully_connected)
    for engine, dtype in DTYPES.items():
        graph = mpsnn.MPSNNGraph(engine, build(mpsnn.MPSNNImageNode("x")).result_image)
        graph.save(str(tmp_path / "g"))
        loaded = mpsnn.MPSNNGraph.load(str(tmp_path / "g"), engine)
        assert graph.run([x.astype(dtype)]).numpy().tobytes() == loaded.run([x.astype(dtype)]).numpy().tobytes()


def test_new_bits_are_seen_after_a_reload():
    source, x = Bits(random_bits(1, 2, 1, 1, 8)), normal(0, 1, 2, 2, 8).astype(np.float32)
    graph = mpsnn.MPSNNGraph("cpu", node_of(source, Type.XNOR)(mpsnn.MPSNNImageNode()).result_image)
    before = np.array(graph.run([x]).numpy())
    source.words = ~source.words
    assert (graph.run([x]).numpy() == before).all()
    graph.reload_from_data_sources()
    assert (graph.run([x]).numpy() == -before).all()


# --- errors


@pytest.mark.parametrize("fully_connected", [False, True])
def test_sizes_that_do_not_fit_name_the_node_and_both_shapes(fully_connected):
    node = node_of(Bits(random_bits(0, 2, 3, 3, 4)), Type.XNOR, fully_connected=fully_connected)
    name = "MPSCNNBinaryFullyConnectedNode" if fully_connected else "MPSCNNBinaryConvolutionNode"
    made = node(mpsnn.MPSNNImageNode())
    error = caught(
        mpsnn.ShapeError, lambda: run(made, (1, 3, 3, 5)), "expect 4 input channels", label="culprit", node=name
    )
    assert "2 x 3 x 3 x 4" in error.expected
    assert "1 x 3 x 3 x 5" in error.actual
    if fully_connected:
        made = node(mpsnn.MPSNNImageNode())
        error = caught(mpsnn.ShapeError, lambda: run(made, (1, 4, 5, 4)), "as large as the image", label="culprit")
        assert (error.expected, error.actual) == ("kernel 4 x 5", "weights 2 x 3 x 3 x 4")


def test_weights_must_be_packed_bits_of_the_right_number_and_one_group():
    source = Bits(random_bits(0, 2, 3, 3, 4))
    source.kind = mpsnn.MPSDataType.Float32
    source.words = source.words.astype(np.float32)
    node = node_of(source, Type.XNOR)(mpsnn.MPSNNImageNode())
    caught(mpsnn.WeightError, lambda: run(node, (1, 3, 3, 4)), "packed bits", "UInt32", label="bits")
    source = Bits(random_bits(0, 2, 3, 3, 4))
    source.words = source.words[:1]
    node = node_of(source, Type.XNOR)(mpsnn.MPSNNImageNode())
    caught(mpsnn.WeightError, lambda: run(node, (1, 3, 3, 4)), "18", "9", label="bits")
    node = node_of(Bits(random_bits(0, 2, 3, 3, 4), groups=2), Type.XNOR)(mpsnn.MPSNNImageNode())
    caught(mpsnn.WeightError, lambda: run(node, (1, 3, 3, 4)), "one group", label="bits")


@pytest.mark.parametrize("which", range(4))
def test_terms_need_one_number_per_channel(which):
    terms = [None] * 4
    terms[which] = [1.0] * 7
    node = node_of(Bits(random_bits(0, 2, 3, 3, 4)), Type.XNOR, terms=terms)(mpsnn.MPSNNImageNode())
    error = caught(mpsnn.WeightError, lambda: run(node, (1, 3, 3, 4)), "one number per channel", label="bits")
    assert (error.expected, error.actual) == ("2" if which < 2 else "4", "7")


@pytest.mark.parametrize("fully_connected", [False, True])
def test_there_is_no_gradient(fully_connected):
    node = node_of(Bits(random_bits(0, 2, 3, 3, 4)), Type.XNOR, fully_connected=fully_connected)(mpsnn.MPSNNImageNode())
    node.label = "culprit"
    for call in (
        lambda: node.gradient_filter(mpsnn.MPSNNImageNode()),
        lambda: node.training_graph(mpsnn.MPSNNImageNode()),
    ):
        caught(mpsnn.GraphError, call, type(node).__name__, label="culprit")
