# SPDX-License-Identifier: Apache-2.0
"""check_gradients() and `mpsnn check`: what is right passes, what is wrong is found and named."""

import mpsnn
import numpy as np
import pytest
from graph_cases import ArraySource, CpuSource, adam, loss, weights
from mpsnn import check_cases, check_table
from mpsnn._gradient_graph import GradientGraph
from mpsnn.check_cases import BASES, MAKERS, NO_GRADIENT, cases_of, forward_classes, gradient_classes, node_classes
from mpsnn.check_table import check_class
from mpsnn.checking import check_gradients
from mpsnn.cli import app
from typer.testing import CliRunner

FEW = 4  # cases per class: windows of even and of unequal sizes, strides over kernels, and images of one pixel


def image(name="x"):
    return mpsnn.MPSNNImageNode(name)


def constant(values):
    return lambda rng, shape: np.broadcast_to(values, shape)


def network(optimizer=None, style=None):
    """Two trained nodes and a loss."""
    node = mpsnn.MPSCNNConvolutionNode(image(), weights(2, 4, label="stem", optimizer=optimizer))
    if style is not None:
        node.training_style = style
    norm = mpsnn.MPSCNNBatchNormalizationNode(
        node.result_image, mpsnn.BatchNormalizationWeights(4, label="norm", optimizer=optimizer)
    )
    relu = mpsnn.MPSCNNNeuronReLUNode(norm.result_image, 0.0)
    pool = mpsnn.MPSCNNPoolingMaxNode(relu.result_image, 2)
    return node, norm, mpsnn.MPSCNNLossNode(pool.result_image, loss("SoftMaxCrossEntropy"))


# --- the table over all classes


def test_every_class_of_the_module_is_a_base_a_gradient_or_has_a_case():
    listed = BASES | set(gradient_classes()) | set(MAKERS) | set(NO_GRADIENT)
    assert set(node_classes()) - listed == set()
    assert not set(MAKERS) & set(NO_GRADIENT)


@pytest.mark.parametrize("name", [name for name in forward_classes() if name in MAKERS])
def test_gradients_of_every_class_agree_with_the_reference_and_with_differences(name):
    result = check_class(name, FEW, 0)
    assert result.problems == []
    assert result.cases == FEW
    assert result.elements > 0
    assert result.against_reference is not None
    assert result.against_differences is not None


@pytest.mark.parametrize("name", [name for name in forward_classes() if name in NO_GRADIENT])
def test_classes_without_a_gradient_say_so(name):
    result = check_class(name, FEW, 0)
    assert result.refuses
    assert result.verdict == "no gradient, and says so"
    with pytest.raises(mpsnn.GraphError, match=name):
        check_gradients(NO_GRADIENT[name](name), source_shapes=None)


def test_every_gradient_class_is_used_by_a_case():
    results = [check_class(name, 1, 0) for name in forward_classes()]
    assert check_table.unused_gradient_classes(results) == []
    without = [result for result in results if result.node_class != "MPSCNNSoftMaxNode"]
    assert check_table.unused_gradient_classes(without) == ["MPSCNNSoftMaxGradientNode"]


def test_a_class_without_a_case_is_a_failure(monkeypatch):
    monkeypatch.delitem(MAKERS, "MPSCNNSoftMaxNode")
    result = check_class("MPSCNNSoftMaxNode", FEW, 0)
    assert not result.passed
    assert "no case" in result.problems[0]


def test_a_class_that_ought_to_refuse_and_does_not_is_a_failure(monkeypatch):
    monkeypatch.delitem(MAKERS, "MPSCNNSoftMaxNode")
    monkeypatch.setitem(NO_GRADIENT, "MPSCNNSoftMaxNode", lambda name: mpsnn.MPSCNNSoftMaxNode(image()))
    result = check_class("MPSCNNSoftMaxNode", FEW, 0)
    assert not result.passed
    assert result.verdict == "FAIL"


def test_case_number_k_is_the_same_whatever_the_count():
    about = [case.about for case in cases_of("MPSCNNConvolutionNode", 6, 5)]
    assert about[:3] == [case.about for case in cases_of("MPSCNNConvolutionNode", 3, 5)]
    assert len(set(about)) == 6
    assert about != [case.about for case in cases_of("MPSCNNConvolutionNode", 6, 6)]


# --- wrong gradients are found


def wrong_engine(monkeypatch, tensor, index, amount):
    """The engine's gradient number `tensor` is off at one element."""
    right = GradientGraph.run

    def run(self, device, *arguments, **options):
        step = right(self, device, *arguments, **options)
        if device == "cpu" and step.gradients:
            step.gradients[tensor][index] += amount
        return step

    monkeypatch.setattr(GradientGraph, "run", run)


@pytest.mark.parametrize(
    ("tensor", "what", "index"),
    [(0, 'image "x"', (1, 2, 3, 1)), (1, "weights", (3, 0, 2, 1)), (2, "biases", (2,)), (3, "gamma", (1,))],
)
def test_one_wrong_element_of_an_engine_is_named(monkeypatch, tensor, what, index):
    wrong_engine(monkeypatch, tensor, index, 1e-2)
    report = check_gradients(network()[2], seed=3)
    assert not report.ok
    (row,) = report.failures
    assert (row.what, row.coordinates) == (what, index)
    assert row.value - row.reference_value == pytest.approx(1e-2, rel=1e-3)
    assert row.difference_value == pytest.approx(row.reference_value, abs=row.tolerance)
    assert row.against_reference > 1
    assert row.against_differences > 1
    assert str(list(index)) in str(report)
    assert "FAIL" in str(report)
    with pytest.raises(mpsnn.GraphError) as caught:
        report.raise_if_failed()
    for part in (what, str(list(index)), row.node_class, "sqrt(", "epsilon(float32)", "seed=3"):
        assert part in str(caught.value)
    assert caught.value.label == row.label


def test_an_error_just_over_the_tolerance_is_found_and_one_well_below_is_not(monkeypatch):
    allowed = check_gradients(network()[2]).rows[0].engine_tolerance
    wrong_engine(monkeypatch, 0, (0, 0, 0, 0), 1.5 * allowed)
    assert not check_gradients(network()[2]).ok
    monkeypatch.undo()
    wrong_engine(monkeypatch, 0, (0, 0, 0, 0), 0.1 * allowed)
    assert check_gradients(network()[2]).ok


def test_a_tolerance_rests_on_what_a_float32_engine_rounds():
    """Not so wide that a gradient's fifth place could be wrong: a thousandth of the largest is."""
    for row in check_gradients(network()[2]).rows:
        if row.what != "biases":  # in front of a batch normalization their gradient is 0
            assert row.engine_tolerance < 1e-3 * np.abs(row.gradient).max()
        assert "* sqrt(" in row.why


def test_a_not_a_number_fails(monkeypatch):
    wrong_engine(monkeypatch, 1, (0, 0, 0, 0), np.nan)
    report = check_gradients(network()[2])
    assert [row.what for row in report.failures] == ["weights"]
    assert report.failures[0].coordinates == (0, 0, 0, 0)


def hand_wired(stride, label="mine"):
    """Average pooling with a gradient node made by hand, whose window may be another than the forward node's."""
    forward = mpsnn.MPSCNNNeuronTanHNode(image(), 1.0, 1.0)
    forward.label = label
    wrong = mpsnn.MPSCNNNeuronGradientNode(
        image("incoming"),
        forward.sources[0],
        forward.result_state,
        mpsnn.MPSNNNeuronDescriptor(mpsnn.MPSCNNNeuronType.TanH, 1.0, stride),
    )
    wrong.result_image.handle = "x"
    return mpsnn.MPSNNGraph("cpu", [forward.result_image, wrong.result_image])


def test_a_gradient_wired_by_hand_is_checked_as_it_is():
    """Both engines compute the same wrong gradient: only differences can tell."""
    shapes = {"x": (2, 3, 4, 2)}
    assert check_gradients(hand_wired(1.0), source_shapes=shapes).ok
    report = check_gradients(hand_wired(0.5), source_shapes=shapes)
    assert not report.ok
    row = report.rows[0]
    assert row.against_reference <= 1 < row.against_differences
    assert (row.node_class, row.label, row.what) == ("MPSCNNNeuronTanHNode", "mine", 'image "x"')
    assert abs(row.value - row.difference_value) > row.tolerance
    assert row.value == pytest.approx(row.reference_value, abs=row.tolerance)


def test_a_training_graph_is_checked_through_its_gradient_nodes():
    """Images and parameters; what a caller's own handler left out is not there."""
    node = network()[2]
    ends = node.training_graph()
    graph = mpsnn.MPSNNGraph("cpu", ends[0].result_image)
    report = check_gradients(graph)
    assert report.ok, str(report)
    assert [row.what for row in report.rows] == ['image "x"', "weights", "biases", "gamma", "beta"]
    assert "MPSCNNBatchNormalizationGradientNode" in report.gradient_classes


def test_an_addition_of_gradients_left_out_is_found():
    """x + 3 x: a training graph that forgets one of the two ways."""
    source = image()
    three = mpsnn.MPSCNNNeuronLinearNode(source, 3.0, 0.0)
    added = mpsnn.MPSNNAdditionNode(source, three.result_image)
    first, _ = added.gradient_filters(image("incoming"))
    first.result_image.handle = "x"
    graph = mpsnn.MPSNNGraph("cpu", [added.result_image, first.result_image])
    report = check_gradients(graph, source_shapes=[(1, 2, 2, 1)])
    assert not report.ok
    row = report.rows[0]
    assert row.difference_value == pytest.approx(4 * row.value, rel=1e-5)


# --- kinks


def test_ties_are_skipped_counted_and_explained():
    node = mpsnn.MPSCNNPoolingMaxNode(image(), 2)
    report = check_gradients(node, source_shapes=[(2, 6, 6, 3)], draw=[lambda rng, shape: rng.integers(-1, 2, shape)])
    (row,) = report.rows
    assert report.ok, str(report)
    assert row.differenced == 24
    assert sum(row.skipped.values()) > 0
    assert "a kink" in str(report)


def test_elements_as_near_to_a_kink_as_a_step_are_resolved_by_smaller_steps():
    draw = [lambda rng, shape: rng.choice([5e-6, -5e-6, 1.0], shape)]
    report = check_gradients(mpsnn.MPSCNNNeuronReLUNode(image(), 0.0), source_shapes=[(1, 4, 4, 1)], draw=draw)
    assert report.ok
    assert report.rows[0].differenced == 16
    assert not report.rows[0].skipped


def test_where_everything_is_a_kink_nothing_was_checked_and_that_fails():
    report = check_gradients(
        mpsnn.MPSCNNNeuronReLUNode(image(), 0.0), source_shapes=[(1, 2, 2, 1)], draw=[constant(0.0)]
    )
    assert not report.ok
    assert "no element could be differenced" in report.rows[0].problem
    with pytest.raises(mpsnn.GraphError, match="no element could be differenced"):
        report.raise_if_failed()


# --- options and graphs of all kinds


@pytest.mark.parametrize("reduction", ["Sum", "Mean", "SumByNonZeroWeights", "None_"])
@pytest.mark.parametrize("across", [False, True])
def test_a_loss_s_gradient_is_that_of_the_sum_whatever_the_reduction(reduction, across):
    for kind in ("SoftMaxCrossEntropy", "MeanSquaredError"):
        descriptor = mpsnn.MPSCNNLossDescriptor(
            mpsnn.MPSCNNLossType[kind], mpsnn.MPSCNNReductionType[reduction], reduce_across_batch=across
        )
        node = mpsnn.MPSCNNLossNode(mpsnn.MPSCNNNeuronTanHNode(image(), 1.0, 1.0).result_image, descriptor)
        report = check_gradients(node, source_shapes=[(2, 2, 3, 4)])
        assert report.ok, str(report)


def test_nodes_that_share_weights_are_one_parameter():
    shared = weights(3, 3, label="shared")
    first = mpsnn.MPSCNNConvolutionNode(image(), shared)
    second = mpsnn.MPSCNNConvolutionNode(first.result_image, shared)
    report = check_gradients(second)
    assert report.ok, str(report)
    assert [row.what for row in report.rows] == ['image "x"', "weights", "biases"]


def test_dropout_keeps_its_masks_while_differences_are_taken():
    node = mpsnn.MPSCNNDropoutNode(mpsnn.MPSCNNNeuronTanHNode(image(), 1.0, 1.0).result_image)
    assert check_gradients(node).ok


def test_the_same_seed_gives_the_same_report_and_another_one_other_numbers():
    node = network()[2]
    assert str(check_gradients(node, seed=1)) == str(check_gradients(node, seed=1))
    assert check_gradients(node, seed=1).rows[0].value != check_gradients(node, seed=2).rows[0].value


def test_a_tolerance_may_be_given():
    node = mpsnn.MPSCNNNeuronTanHNode(image(), 1.0, 1.0)
    report = check_gradients(node, tolerance=1e-12)
    assert not report.ok
    assert report.rows[0].why.startswith("as given")
    assert check_gradients(node, tolerance=1e-4).ok


def test_the_reference_engine_itself_agrees_with_differences():
    assert check_gradients(network()[2], device="reference").ok


def test_images_of_an_empty_batch_have_nothing_to_compare():
    report = check_gradients(mpsnn.MPSCNNNeuronTanHNode(image(), 1.0, 1.0), source_shapes=[(0, 2, 2, 1)])
    assert report.ok
    assert report.rows[0].checked == 0


# --- nothing is left changed


def test_nodes_data_sources_and_optimizers_are_as_before():
    conv, norm, node = network(optimizer=adam())
    graph = mpsnn.MPSNNGraph("cpu", node.training_graph()[0].result_image)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype(np.float32)
    labels = np.eye(4, dtype=np.float32)[np.zeros((2, 4, 4), int)]

    def state():
        sources = [conv.weights, norm.data_source]
        values = [np.array(v).tobytes() for source in sources for v in source.values.values()]
        history = [np.array(v).tobytes() for source in sources for v in source.history]
        options = [(source.optimizer.time_step, source.optimizer.learning_rate) for source in sources]
        handles = [conv.sources[0].handle, conv.result_state.handle, node.input_labels.handle]
        return values, history, options, handles, conv.result_state.export_from_graph, conv.training_style

    graph.run([images], [mpsnn.MPSCNNLossLabels(labels)])
    before = state()
    assert any(np.frombuffer(h, np.float32).any() for h in before[1])
    check_gradients(node)
    check_gradients(graph)
    assert state() == before


def test_an_error_leaves_nothing_changed_either():
    conv, _, node = network()
    with pytest.raises(mpsnn.ShapeError):
        check_gradients(node, source_shapes=[(1, 8, 8, 3)])
    assert conv.sources[0].handle == "x"
    assert not conv.result_state.export_from_graph


@pytest.mark.parametrize("kind", [ArraySource, CpuSource])
def test_data_sources_in_python_are_not_updated_and_compared_with_the_reference_only(kind):
    source = kind(2, 3)
    node = mpsnn.MPSCNNConvolutionNode(image(), source)
    node.training_style = mpsnn.MPSNNTrainingStyle.UpdateDeviceCPU
    before = source.values.copy()
    report = check_gradients(node)
    assert report.ok, str(report)
    assert (source.values == before).all()
    assert "update" not in source.calls
    assert "update" not in vars(source)
    row = report.rows[1]
    assert row.checked == before.size
    assert row.differenced == 0
    assert "without set_values()" in next(iter(row.skipped))


# --- errors


def test_things_that_are_no_graph_are_refused():
    with pytest.raises(mpsnn.OptionError, match="a graph or a filter node"):
        check_gradients(image())


def test_shapes_of_inputs_that_do_not_exist_are_refused():
    node = mpsnn.MPSCNNNeuronTanHNode(image(), 1.0, 1.0)
    with pytest.raises(mpsnn.OptionError, match="source_shapes names inputs"):
        check_gradients(node, source_shapes={"y": (1, 1, 1, 1)})
    with pytest.raises(mpsnn.OptionError, match="another length"):
        check_gradients(node, source_shapes=[(1, 1, 1, 1)] * 2)


def test_a_gradient_image_without_the_handle_of_its_input_is_refused():
    forward = mpsnn.MPSNNMultiplicationNode(image("a"), image("b"))
    gradient = forward.gradient_filters(image("incoming"))[0]
    graph = mpsnn.MPSNNGraph("cpu", [forward.result_image, gradient.result_image])
    with pytest.raises(mpsnn.OptionError, match="which input a gradient image belongs to"):
        check_gradients(graph)


# --- the command


def command(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_command_prints_one_line_per_class():
    result = command("MPSCNNPoolingMaxNode", "MPSCNNSoftMaxNode", "--cases", 2)
    assert result.exit_code == 0, result.output
    assert "MPSCNNPoolingMaxNode" in result.output
    assert "2 of 2 classes pass" in result.output


def test_the_command_writes_markdown():
    result = command("MPSCNNSoftMaxNode", "--cases", 2, "--markdown")
    lines = result.stdout.splitlines()
    assert lines[0] == "| class | cases | against reference | against differences | verdict |"
    assert lines[2].startswith("| `MPSCNNSoftMaxNode` | 2 | 0.")
    assert lines[2].endswith("| pass |")
    assert len(lines) == 3


def test_the_command_fails_when_a_gradient_is_wrong(monkeypatch):
    wrong_engine(monkeypatch, 0, (0, 0, 0, 0), 1.0)
    result = command("MPSCNNSoftMaxNode", "--cases", 2)
    assert result.exit_code == 1
    assert "FAIL" in result.output
    assert "[0, 0, 0, 0]" in result.output


def test_the_command_names_classes_like_the_wrong_one():
    result = command("MPSCNNPoolingMaxxNode")
    assert result.exit_code == 1
    assert "MPSCNNPoolingMaxNode" in result.output


def test_the_command_compares_with_pytorch():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    result = command("MPSCNNConvolutionNode", "MPSCNNDropoutNode", "--cases", FEW, "--against", "torch", "--markdown")
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ") for line in result.stdout.splitlines()[2:]]
    assert 0 < float(rows[0][4]) < 1
    assert rows[1][4] == "-"


def test_a_difference_to_pytorch_is_a_failure(monkeypatch):
    check_torch = pytest.importorskip("mpsnn.check_torch", reason="PyTorch is not installed")
    monkeypatch.setattr(check_torch, "_norm", check_torch._average)
    result = check_class("MPSCNNPoolingL2NormNode", 2, 0, torch=True)
    assert not result.passed
    assert any("differs from PyTorch" in problem for problem in result.problems)


def test_all_windows_at_the_start_are_the_corners():
    abouts = [case.about for case in cases_of("MPSCNNPoolingMaxNode", len(check_cases.WINDOWS))]
    assert any("size 1 x 1" in about for about in abouts)
    assert any("explicit" in about for about in abouts)
