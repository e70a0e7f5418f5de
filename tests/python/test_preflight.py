# SPDX-License-Identifier: Apache-2.0
"""preflight("metal"): what it finds, how it says so, and that it misses no rule."""

import json
from functools import cache
from pathlib import Path

import mpsnn
import numpy as np
import pytest
from graph_cases import ArraySource, loss, sgd, weights
from preflight_cases import CASES, SHAPE, SIGMOID
from preflight_graphs import (
    CULPRIT,
    TypedSource,
    behind_sum,
    concatenated,
    convolution,
    graph,
    image,
    simple,
    trained,
)

ROOT = Path(__file__).resolve().parents[2]


@cache
def rules():
    return {rule.id: rule for rule in mpsnn.preflight_rules()}


def found(graph, case, shapes):
    return [finding for finding in graph.preflight("metal", shapes).findings if finding.rule == case.rule]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_rule_finds_the_node_that_breaks_it_and_nothing_in_the_mended_graph(case):
    rule = rules()[case.rule]
    assert rule.needs_shapes == (case.shapes is not None)
    broken = case.broken()
    report = broken.preflight("metal", case.shapes)
    findings = [finding for finding in report.findings if finding.rule == case.rule]
    finding = next(finding for finding in findings if case.node in finding.node)
    assert (finding.severity, finding.reason, finding.fix) == (rule.severity, rule.reason, rule.fix)
    assert finding.source == "MPS_SEMANTICS " + rule.source
    assert case.numbers in finding.actual
    assert finding.expected
    assert report.ok == all(finding.severity != "refused" for finding in report.findings)
    for part in (case.node, case.rule, case.numbers, finding.expected, rule.fix, rule.source):
        assert part in str(report)
    mended = (case.mended or case.broken)()
    assert not found(mended, case, case.mended_shapes or case.shapes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_refusal_raises_an_error_that_names_node_numbers_and_fix(case):
    report = case.broken().preflight("metal", case.shapes)
    if report.ok:
        report.raise_for_refused()  # nothing to raise
        return
    first = report.findings[0]
    with pytest.raises((mpsnn.ShapeError, mpsnn.OptionError, mpsnn.WeightError)) as caught:
        report.raise_for_refused()
    error = caught.value
    assert (error.label, error.expected, error.actual) == (first.node, first.expected, first.actual)
    for part in (first.node, first.reason, first.actual, first.fix, first.rule, first.source):
        assert part in str(error)


def test_every_rule_has_a_case_and_every_case_a_rule():
    assert len(rules()) == len(mpsnn.preflight_rules())
    assert sorted(case.rule for case in CASES) == sorted(rules())


def test_every_rule_is_filled_in():
    for rule in rules().values():
        assert rule.severity in ("refused", "differs", "unverified")
        assert all((rule.nodes, rule.reason, rule.fix, rule.source)), rule.id


def test_every_open_question_has_a_rule_or_a_reason():
    cited = {part.strip() for rule in rules().values() for part in rule.source.split(",")}
    unchecked = dict(mpsnn.unchecked_questions())
    specification = (ROOT / "docs" / "MPS_SEMANTICS.md").read_text()
    questions = [line.split("|")[1].strip() for line in specification.splitlines() if line.startswith("| OQ-")]
    assert len(questions) == 52
    assert [q for q in questions if (q in cited) == (q in unchecked)] == []
    assert set(unchecked) <= set(questions)


def test_without_shapes_the_report_says_what_it_did_not_check():
    made = concatenated(23, 18)
    report = made.preflight("metal")
    assert report.skipped_rules == [rule.id for rule in rules().values() if rule.needs_shapes]
    assert "not checked, for want of source shapes: image-size, " in str(report)
    report = made.preflight("metal", shapes=SHAPE)
    assert report.skipped_rules == []
    assert "not checked" not in str(report)


def test_a_clean_graph_has_an_empty_report():
    report = simple(SIGMOID).preflight("metal", SHAPE)
    assert report.ok
    assert report.findings == []
    assert str(report) == "preflight for metal: 0 refused, 0 differs, 0 unverified\n"


def test_a_training_graph_of_the_usual_kind_is_refused_nowhere():
    node = mpsnn.MPSCNNConvolutionNode(image(), weights(3, 8, label="stem", optimizer=sgd()))
    node = mpsnn.MPSCNNNeuronReLUNode(node.result_image)
    node = mpsnn.MPSCNNPoolingMaxNode(node.result_image, 2)
    node = mpsnn.MPSCNNFullyConnectedNode(node.result_image, weights(8, 10, 4, label="head", optimizer=sgd()))
    node = mpsnn.MPSCNNLossNode(node.result_image, loss())
    made = mpsnn.MPSNNGraph("cpu", node.training_graph()[0].result_image, False)
    report = made.preflight("metal", [(2, 8, 8, 3)])
    assert report.ok
    assert [finding.rule for finding in report.findings] == ["max-ties"]


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_the_engines_of_this_library_refuse_nothing(engine):
    made = concatenated(23, 18)
    report = made.preflight(engine, SHAPE)
    assert (report.engine, report.ok, report.findings, report.skipped_rules) == (engine, True, [], [])


def test_an_unknown_engine_is_refused_with_the_names_of_those_that_exist():
    with pytest.raises(mpsnn.OptionError, match='there is no engine "vulkan"') as caught:
        simple(SIGMOID).preflight("vulkan")
    assert set(caught.value.expected.split(", ")) == {"cpu", "reference", "metal"}
    assert caught.value.actual == "vulkan"


def test_shapes_that_the_graph_cannot_take_raise_what_encode_would_raise():
    made = graph(convolution())
    with pytest.raises(mpsnn.ShapeError, match="expect 4 input channels but the image has 3"):
        made.preflight("metal", [(1, 8, 8, 3)])
    with pytest.raises(mpsnn.GraphError, match="takes 1 source images, not 2"):
        made.preflight("metal", SHAPE * 2)
    with pytest.raises(mpsnn.ShapeError, match="cannot be of size"):
        made.preflight("metal", [(1, -8, 8, 3)])


def test_preflight_changes_nothing():
    source = ArraySource(4, 4)
    made = graph(convolution(source=source))
    given = np.ones(SHAPE[0], np.float32)
    before = made.run([given]).numpy().copy()
    source.calls.clear()
    made.preflight("metal", SHAPE)
    assert source.calls == ["load", "purge"]
    assert made.encode_count == 1
    assert np.array_equal(made.run([given]).numpy(), before)


def test_an_error_of_a_data_source_arrives_and_loads_stay_balanced():
    class Broken(ArraySource):
        is_broken = False

        def kernel_weights_data_type(self):
            if self.is_broken:
                raise LookupError("gone")
            return mpsnn.MPSDataType.Float32

    source = Broken(4, 4)
    made = graph(convolution(source=source))
    source.is_broken = True
    source.calls.clear()
    with pytest.raises(LookupError, match="gone"):
        made.preflight("metal")
    assert source.calls == ["load", "purge"]


def test_padding_channels_are_followed_through_the_graph():
    """Behind a concatenation, whatever fixes the number of channels does not fit; what adapts to it is left alone."""
    arithmetic = concatenated(23, 18, behind=behind_sum).preflight("metal", SHAPE * 2)
    assert [f.node for f in arithmetic.findings if f.rule == "padded-channels"] == [CULPRIT]
    adapts = concatenated(23, 18, behind=lambda source, _: mpsnn.MPSCNNPoolingMaxNode(source, 2))
    assert adapts.preflight("metal", SHAPE).ok
    nested = concatenated(3, 5, behind=lambda source, _: mpsnn.MPSNNConcatenationNode([source, image("x")]))
    actual = [f.actual for f in nested.preflight("metal", SHAPE * 2).findings if f.rule == "concatenation-channels"]
    assert actual == [
        "sources of 3, 5 feature channels: 8 here, 9 on Metal",
        "sources of 8, 4 feature channels: 12 here, 16 on Metal",
    ]


class Weight:
    def scalar_weight_for_source_image(self, source_image, destination_image):
        return 0.5


class Provider:
    def transform_for_source_image(self, source_image, handle):
        return mpsnn.MPSScaleTransform(1, 1, 0, 0)


def test_every_kind_of_callback_is_named():
    weighted = mpsnn.MPSNNForwardLossNode([image("y"), image("t")], loss("MeanSquaredError"))
    weighted.property_call_back = Weight()
    scale = mpsnn.MPSNNBilinearScaleNode(image(), Provider(), (4, 4, 1))
    for made, kinds in ((trained(weighted), ["a property_callback"] * 2), (graph(scale), ["a transform provider"])):
        findings = made.preflight("metal").findings
        assert [finding.actual for finding in findings if finding.rule == "callback-once"] == kinds


def test_halves_that_nobody_trains_keep_their_precision():
    assert graph(convolution(source=TypedSource(np.float16))).preflight("metal").findings == []
    updated = trained(convolution(source=TypedSource(np.float16)))
    assert [f.rule for f in updated.preflight("metal").findings] == ["half-precision-weights"]


def test_every_node_class_has_a_status_on_metal():
    facts = json.loads((ROOT / "tools" / "mps_api.json").read_text())
    names = [c["name"] for c in facts["classes"] if c["header"] == "MPSNNGraphNodes.h"]
    status = {name: mpsnn.metal_status(name) for name in names}
    kinds = {kind for kind, _ in status.values()}
    assert kinds <= {"lowered", "refused", "abstract", "image", "state"}
    for name, (kind, note) in status.items():
        cls = getattr(mpsnn, name)
        is_filter = issubclass(cls, mpsnn.MPSNNFilterNode)
        is_made = "__init__" in vars(cls) or cls.__init__ is not object.__init__
        assert (kind in ("lowered", "refused")) <= is_filter, name
        assert (kind == "state") <= issubclass(cls, mpsnn.MPSNNStateNode), name
        assert is_made
        assert note or kind == "lowered", name
    with pytest.raises(mpsnn.OptionError, match='no node class "MPSNNGraph"'):
        mpsnn.metal_status("MPSNNGraph")
