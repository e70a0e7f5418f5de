# SPDX-License-Identifier: Apache-2.0
"""The benchmark: every network trains, sides agree where PyTorch is installed, and the report is written."""

import importlib
import importlib.util

import mpsnn
import numpy as np
import pytest
from mpsnn.bench import networks, side_mpsnn
from mpsnn.bench.cases import DATA, FORWARD, LAYERS, WEIGHTS, StepCase
from mpsnn.bench.main import Request, Settings, run

SMALL = {"lenet": 16, "vgg": 8, "resnet18": 32, "tinyyolo": 32, "mobilenet": 32, "unet": 16}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_lowers_its_loss(name):
    network = networks.NETWORKS[name](2, SMALL[name])
    network.learning_rate = 0.02 if network.classes is None else 0.003
    graph, _ = side_mpsnn.training_graph(network)
    images, targets = networks.batch(network)
    state = side_mpsnn.labels(network, targets)
    losses = []
    for _ in range(6):
        graph.run([images], [state])
        losses.append(state.loss_image.numpy().sum())
    assert min(losses[1:]) < losses[0]


def test_a_profile_times_every_operation_and_changes_no_weight():
    network = networks.lenet(2, 16)
    graph, sources = side_mpsnn.training_graph(network)
    images, targets = networks.batch(network)
    before = [np.array(source.values["weights"]) for source in sources]
    profile = graph.profile([images], [side_mpsnn.labels(network, targets)], runs=3)
    assert len(profile.seconds) == len(profile.operations)
    assert all(seconds > 0 for seconds in profile.seconds)
    assert all(operation.node[-20:] in str(profile) for operation in profile.operations)
    for source, values in zip(sources, before, strict=True):
        np.testing.assert_array_equal(source.values["weights"], values)
    chosen = [i for i, o in enumerate(profile.operations) if o.operation == "ConvolutionWeightGradient"]
    assert len(graph.time_operations([images], [side_mpsnn.labels(network, targets)], chosen, 4)) == 4
    with pytest.raises(mpsnn.OptionError, match="no operation"):
        graph.time_operations([images], [side_mpsnn.labels(network, targets)], [len(profile.seconds)], 1)


def test_timing_leaves_the_next_step_right():
    """Timing packs weights as if they had changed: the step behind it must use the real ones."""
    network = networks.lenet(2, 16)
    images, targets = networks.batch(network)
    ends = []
    for is_timed in (False, True):
        graph, sources = side_mpsnn.training_graph(network)
        state = side_mpsnn.labels(network, targets)
        for _ in range(2):
            graph.run([images], [state])
            if is_timed:
                graph.profile([images], [state], runs=2)
        ends.append(np.array(sources[0].values["weights"]))
    np.testing.assert_array_equal(*ends)


def test_names_of_layers_are_unique_and_sizes_positive():
    names = [case.name for case in LAYERS]
    assert len(set(names)) == len(names)
    assert all(min(case.result_shape) > 0 for case in LAYERS)


@pytest.mark.oracle
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="compares with PyTorch, which is not installed")
@pytest.mark.parametrize(
    "name", ["lenet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "mobilenet", "unet"))]
)
def test_steps_of_both_sides_agree(name):
    """Two steps: the second loss shows every gradient of the first. With so few images the batch normalizations amplify
    rounding, tenfold with every step."""
    from mpsnn.bench import side_torch

    case = StepCase(name, 4, 2 * SMALL[name])
    ours = side_mpsnn.step(case, {"steps": 2})["mpsnn"].outputs
    for layout, timed in side_torch.step(case, {"steps": 2}).items():
        np.testing.assert_allclose(ours["losses"], timed.outputs["losses"], rtol=1e-3, err_msg=layout)
        expected = timed.outputs["weight changes"]
        assert np.linalg.norm(ours["weight changes"] - expected) < 0.05 * np.linalg.norm(expected), layout


@pytest.mark.parametrize("which", [FORWARD, DATA, WEIGHTS])
def test_a_quick_run_writes_table_and_plot(tmp_path, which):
    short = {FORWARD: "fwd", DATA: "dgrad", WEIGHTS: "wgrad"}[which]
    lines = []
    request = Request("fc 500>10", [short], None, False, False, [], False, tmp_path / "bench.md")
    (result,) = run(request, Settings(2, 0.001, 1), lines.append)
    assert (result.which, result.problems) == (which, [])
    assert min(result.times["mpsnn"]) > 0
    text = (tmp_path / "bench.md").read_text()
    assert "500" in text and which in text
    assert (tmp_path / "bench.png").stat().st_size > 0


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    said = []
    output = tmp_path / "missing" / "bench.md"
    with pytest.raises(mpsnn.OptionError, match=r"there is no folder .*missing.* to write bench.md to"):
        run(Request("500>10", ["fwd"], None, False, False, [], False, output), Settings(), said.append)
    assert not said


def test_names_that_fit_nothing_are_refused():
    with pytest.raises(mpsnn.OptionError, match="no layer's name contains"):
        run(Request("9x9x9", ["fwd"], None, False, False, [], False, None), Settings(), print)
    with pytest.raises(mpsnn.OptionError, match="no step's name begins with"):
        run(Request(None, ["fwd"], "alexnet", False, False, [], False, None), Settings(), print)
    with pytest.raises(mpsnn.OptionError, match="no pass"):
        run(Request("3x3", ["sideways"], None, False, False, [], False, None), Settings(), print)


@pytest.mark.parametrize("name", ["MPSNN_ISA", "MPSNN_CONV"])
def test_an_unknown_name_in_the_environment_is_said(name, monkeypatch, capfd):
    monkeypatch.setenv(name, "quick")
    (result,) = run(
        Request("fc 500>10", ["fwd"], None, False, False, [], False, None), Settings(2, 0.001, 1), lambda line: None
    )
    assert not result.problems
    assert f"mpsnn: {name}=quick is unknown" in capfd.readouterr().err


@pytest.mark.oracle
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="compares with PyTorch, which is not installed")
@pytest.mark.parametrize("layer", ["cross-entropy 64x10", "fc 500>10", "max pool 2x2s2 20@24"])
def test_every_output_of_both_sides_is_compared(layer):
    passes = ["fwd", "dgrad", "wgrad"]
    results = run(Request(layer, passes, None, False, False, ["torch"], False, None), Settings(2, 0.001, 1), print)
    assert results
    for result in results:
        assert not result.problems
        assert result.errors


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["jax", "mlx"])
def test_a_step_of_another_framework_agrees(name):
    pytest.importorskip(name)
    other = importlib.import_module(f"mpsnn.bench.side_{name}")
    case = StepCase("lenet", 4, 28)
    (timed,) = other.step(case, {"steps": 2}).values()
    ours = side_mpsnn.step(case, {"steps": 2})["mpsnn"].outputs
    np.testing.assert_allclose(ours["losses"], timed.outputs["losses"], rtol=1e-3)
    expected = timed.outputs["weight changes"]
    assert np.linalg.norm(ours["weight changes"] - expected) < 1e-3 * np.linalg.norm(expected)


def test_scaling_tells_how_the_time_follows_batches_images_and_threads(tmp_path, monkeypatch):
    from mpsnn.bench import main

    monkeypatch.setattr(main, "SCALING", {"batch": [StepCase("lenet", n, 16) for n in (2, 4)]})
    monkeypatch.setattr(main, "STEPS", [StepCase("lenet", 2, 16)])
    request = Request(None, ["fwd"], "lenet", True, False, [], False, tmp_path / "bench.md")
    (result,) = run(request, Settings(2, 0.001, 2), lambda line: None)
    assert result.seconds > 0
    text = (tmp_path / "bench.md").read_text()
    assert "## Scaling with batch" in text and "of the first, per pixel" in text
    assert "times one thread's speed; multiply-adds alone" in text


def test_flops_are_those_of_the_layers_that_multiply():
    network = networks.Network("two layers", (2, 6, 6, 3), 4)
    network.convolution(5, 3)
    network.add("fully_connected", outputs=4)
    convolution, fully_connected = 2 * 2 * 6 * 6 * 5 * 3 * 9, 2 * 2 * 6 * 6 * 5 * 4
    assert networks.flops(network) == 2 * convolution + 3 * fully_connected


def test_what_another_side_computes_differently_is_a_problem_not_a_time(tmp_path):
    from mpsnn.bench.run import Result, Runner

    files = {name: tmp_path / f"{name}.npz" for name in ("mpsnn", "torch")}
    np.savez(files["mpsnn"], **{"mpsnn/result": np.ones(4)})
    np.savez(files["torch"], **{"NCHW/result": np.full(4, 1.1), "NCHW/gradient": np.ones(4)})
    result = Result("case", "group", FORWARD, "", {}, {})
    with Runner(["mpsnn", "torch"], Settings()) as runner:
        runner._compare(result, files, {"result": 1e-3})
    assert any("result differs" in problem for problem in result.problems)
    assert any("gradient, which we do not" in problem for problem in result.problems)
