# SPDX-License-Identifier: Apache-2.0
"""The product against tools/mps_api.json: every node class, initializer, property, default, enumeration and protocol.

Each check adds what it looked at to CHECKED, and the last test compares the numbers with what the facts hold: nothing is
passed over in silence. What differs from the naming rule stands in EXCEPTIONS with its reason, and nothing else may.
"""

import enum
import re
from collections import Counter
from pathlib import Path

import mpsnn
import numpy as np
import pytest
from api_facts import (
    ABSTRACT,
    CLASSES,
    ENUMS,
    FACTS,
    HEADER,
    PROTOCOLS,
    STRUCTS,
    Callback,
    ancestors,
    arguments,
    image,
    initializers,
    instance,
    make,
    method_name,
    parameter_names,
    pointed,
    properties,
    snake,
)

SAVING = "NSCoding: graphs are saved by MPSNNGraph.save and weights by mpsnn.save_weights, in files that run no code"
COPYING = "NSCopying: graphs share a data source by reference; copy.copy(source) is Python's way to have another"
EXCEPTIONS = {
    "MPSNNImageNode -init": "the only parameter, handle, is nullable, and a trailing nullable defaults to None (DESIGN 2)",
    "MPSCNNGroupNormalizationDataSource.numberOfGroups": "a method like number_of_feature_channels(): applications override it",
    "MPSNNMultiaryGradientStateNode instance": "Apple's node classes make no such state either; its properties are its superclass's",
    "MPSNNDivisionNode.gradientClass None": "MPS defines no gradient of a division (MPS_SEMANTICS 4.7)",
    "MPSNNComparisonNode.gradientClass None": "MPS defines no gradient of a comparison (MPS_SEMANTICS 4.7)",
    "MPSCNNConvolutionTransposeNode(convolution_gradient_state)": "the parameter is another node's state, the property of that name its own",
    **{f"{p} encodeWithCoder:": SAVING for p in PROTOCOLS if p.endswith("NormalizationDataSource")},
    **{f"{p} initWithCoder:": SAVING for p in PROTOCOLS if p.endswith("NormalizationDataSource")},
    **{f"{p} supportsSecureCoding": SAVING for p in PROTOCOLS if p.endswith("NormalizationDataSource")},
    **{f"{p} copyWithZone:device:": COPYING for p in PROTOCOLS if p.endswith("DataSource")},
}

CHECKED = Counter()
used_exceptions = set()


def excused(what):
    if what in EXCEPTIONS:
        used_exceptions.add(what)
    return what in EXCEPTIONS


def cls(name):
    return getattr(mpsnn, name)


# --- classes


def check_class(name):
    """Exists, under Apple's name and superclass, with those unavailable constructors and factories absent."""
    assert cls(name).__name__ == name
    nearest = next((base.__name__ for base in cls(name).__mro__[1:] if base.__name__ in CLASSES), "NSObject")
    assert nearest == CLASSES[name]["superclass"]
    CHECKED["classes"] += 1
    for selector in CLASSES[name]["unavailable"]:
        if selector == "-init":
            if not excused(f"{name} -init"):
                with pytest.raises(TypeError):
                    cls(name)()
        elif selector == "+new":
            assert not hasattr(cls(name), "new")
        else:
            node = instance(name)
            with pytest.raises(mpsnn.GraphError):
                given = image() if selector.endswith("Source:") else [image()]
                getattr(node, method_name(selector[1:]))(given)
        CHECKED["unavailable"] += 1
    for method in CLASSES[name]["methods"]:
        if method["kind"] == "class":
            check_class_method(name, method["selector"])


def check_class_method(name, selector):
    twin = "initWith" + selector.removeprefix("nodeWith")
    if selector.startswith("nodeWith") and twin in {s for a in ancestors(name) for s in initializers(a)}:
        assert not hasattr(cls(name), "node_" + "_".join(parameter_names(selector)))  # the constructor is the factory
    elif selector == "nodeWithSource:descriptor:":
        node = cls(name).node(source=image(), descriptor=mpsnn.MPSNNNeuronDescriptor(mpsnn.MPSCNNNeuronType.ELU, 0.5))
        assert type(node) is mpsnn.MPSCNNNeuronELUNode and node.a == 0.5
    else:
        assert selector == "exportedNodeWithHandle:", f"{name} {selector} has no test"
        node = getattr(cls(name), method_name(selector))(handle="tag")
        assert node.handle == "tag" and node.export_from_graph
    CHECKED["class methods"] += 1


@pytest.mark.parametrize("name", CLASSES)
def test_class(name):
    check_class(name)


# --- initializers


def given_images(values):
    found = []
    for value in values:
        found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, mpsnn.MPSNNImageNode)]
    return found


def assert_made(node, name, values):
    """The node is of this very class and holds what it was given."""
    assert type(node) is cls(name)
    if name == "MPSNNImageNode":
        assert node.handle == values["handle"]
        return
    assert type(node.result_image) is mpsnn.MPSNNImageNode
    forward = values.get("forward_filter")
    images = given_images(values.values())
    assert node.sources[: len(images)] == images if forward is None else node.sources[0] is images[0]
    states = [v for v in values.values() if isinstance(v, mpsnn.MPSNNStateNode)]
    assert node.source_states == states if forward is None else node.source_states == [forward.result_state]
    own = {snake(p) for p in properties(name)}
    for parameter, value in values.items():
        if parameter in own and not excused(f"{name}({parameter})"):
            assert getattr(node, parameter) == value, parameter
            CHECKED["parameters read back"] += 1


def check_initializers(name):
    for selector, parameters in initializers(name).items():
        values = arguments(name, selector)
        assert list(values) == parameter_names(selector)
        CHECKED["initializers"] += 1
        if name in ABSTRACT:
            with pytest.raises(TypeError):
                cls(name)(**values)
            continue
        assert_made(cls(name)(*values.values()), name, values)
        assert_made(cls(name)(**values), name, values)
        with pytest.raises(TypeError):
            cls(name)(**values, no_such_parameter=1)
        for parameter in parameters:
            if parameter.nullable:
                absent = {**values, parameter.name: None}
                assert type(cls(name)(**absent)) is type(cls(name)(*absent.values())) is cls(name)
                CHECKED["nullable parameters"] += 1
        if parameters[-1].nullable:
            assert type(cls(name)(*list(values.values())[:-1])) is cls(name)


@pytest.mark.parametrize("name", CLASSES)
def test_initializers(name):
    check_initializers(name)


# --- properties

# A value to set, other than the one that a new node has.
SETTABLE = {
    "float": 0.25,
    "NSUInteger": 0,
    "NSString *": "a name",
    "id<MPSHandle>": "another tag",
    "id<MPSImageAllocator>": mpsnn.MPSImage.default_allocator(),
    "id<MPSNNPadding>": mpsnn.MPSNNDefaultPadding(mpsnn.MPSNNPaddingMethod.SizeFull),
    "id<MPSNNLossCallback>": Callback(),
    "id<MPSNNGramMatrixCallback>": Callback(),
    "MTLRegion": mpsnn.MTLRegion(1, 2, 3, 4),
    "MPSNNConvolutionAccumulatorPrecisionOption": mpsnn.MPSNNConvolutionAccumulatorPrecisionOption.Half,
    "MPSCNNBatchNormalizationFlags": mpsnn.MPSCNNBatchNormalizationFlags.CalculateStatisticsNever,
    "MPSNNTrainingStyle": mpsnn.MPSNNTrainingStyle.UpdateDeviceCPU,
    "MPSImageFeatureChannelFormat": mpsnn.MPSImageFeatureChannelFormat.Float32,
    "MPSNNComparisonType": mpsnn.MPSNNComparisonType.Greater,
}
READABLE = {
    "float": float,
    "double": float,
    "NSUInteger": int,
    "BOOL": bool,
    "NSString *": str,
    "Class": type,
    "MTLSize": tuple,
}
OPAQUE = {"id<MPSHandle>", "id<MPSNNLossCallback>", "id<MPSNNGramMatrixCallback>"}  # any object of the application's


def check_type(name, value, fact):
    kind = fact["type"]
    if value is None:
        assert fact.get("nullable") or excused(f"{name}.{fact['name']} None"), f"{fact['name']} is None"
    elif kind.startswith("NSArray"):
        assert isinstance(value, list) and all(isinstance(v, cls(re.search(r"<(\w+)", kind)[1])) for v in value)
    elif kind not in OPAQUE:
        assert isinstance(value, READABLE.get(kind) or cls(pointed(kind)))


def check_properties(name):
    example = instance(name)
    facts = properties(name)
    if example is None:
        assert excused(f"{name} instance") and facts == properties(CLASSES[name]["superclass"])
        CHECKED["properties"] += len(facts)
        return
    for fact in facts.values():
        python_name = snake(fact["name"])
        before = getattr(example, python_name)
        assert not callable(before) or fact["type"] == "Class"
        check_type(name, before, fact)
        CHECKED["properties"] += 1
        if fact["readonly"]:
            with pytest.raises(AttributeError):
                setattr(example, python_name, before)
            continue
        value = not before if fact["type"] == "BOOL" else SETTABLE[fact["type"]]
        assert value != before, f"{name}.{python_name} is {value} already"
        setattr(example, python_name, value)
        assert getattr(example, python_name) == value
        if fact.get("nullable"):
            setattr(example, python_name, None)
            assert getattr(example, python_name) is None
        CHECKED["settable properties"] += 1


@pytest.mark.parametrize("name", CLASSES)
def test_properties(name):
    check_properties(name)


# --- methods


def check_methods(name):
    """Every instance method that is no initializer: by keyword, and with the result that Apple's has."""
    node = instance(name)
    for method in CLASSES[name]["methods"]:
        if method["kind"] != "instance" or method["selector"].startswith("init"):
            continue
        values = [None if "nodeHandler" in a["label"] else image() for a in method["args"]]
        values = [[v] if "NSArray" in a["objc_type"] else v for v, a in zip(values, method["args"], strict=True)]
        names = [snake(re.sub(r"^\w+?With(?=[A-Z])", "", a["label"])) for a in method["args"]]
        result = getattr(node, method_name(method["selector"]))(**dict(zip(names, values, strict=True)))
        expected = cls(re.findall(r"MPSNN\w+", method["returns"])[0])
        several = method["returns"].startswith("NSArray")
        assert isinstance(result, list) is several
        assert all(isinstance(r, expected) for r in (result if several else [result]))
        CHECKED["methods"] += 1


@pytest.mark.parametrize("name", [n for n in CLASSES if n not in {"MPSNNFilterNode", "MPSNNBinaryArithmeticNode"}])
def test_methods(name):
    check_methods(name)


# The subclass that instance() takes for these has no gradient, or two.
@pytest.mark.parametrize(
    ("base", "name"), [("MPSNNFilterNode", "MPSCNNPoolingMaxNode"), ("MPSNNBinaryArithmeticNode", "MPSNNAdditionNode")]
)
def test_methods_of_abstract_classes(base, name, monkeypatch):
    monkeypatch.setitem(globals(), "instance", lambda _: make(name))
    check_methods(base)


# --- enumerations and structs


def check_enum(name):
    kind, fact = cls(name), ENUMS[name]
    assert issubclass(kind, enum.IntFlag if fact["options"] else enum.IntEnum)
    members = {}
    for constant, value in fact["values"].items():
        assert getattr(mpsnn, constant) is kind.__members__[constant.removeprefix(name)]
        assert int(getattr(mpsnn, constant)) == value
        members[constant.removeprefix(name)] = value
        CHECKED["enum values"] += 1
    assert {m: int(v) for m, v in kind.__members__.items() if m != "None_"} == members
    CHECKED["enums"] += 1


@pytest.mark.parametrize("name", ENUMS)
def test_enum(name):
    check_enum(name)


def test_enum_values_are_those_of_appendix_a():
    text = (Path(__file__).resolve().parents[2] / "docs" / "MPS_SEMANTICS.md").read_text()
    rows = re.findall(
        r"^\| (MPS\w+)(?: / (\w+))? \| (.*) \|$",
        text.split("## Appendix A.")[1].split("## Appendix B.")[0],
        re.MULTILINE,
    )
    pairs = 0
    for name, second, values in rows:
        kinds = [name] + ([name.removesuffix("Type") + second] if second else [])
        for kind, half in zip(kinds, values.split(" / ") if second else [values], strict=True):
            for member, value in re.findall(r"(?<![.\w])(\w+) (0x[0-9a-fA-F]+|\d+)(?![.\d])", half):
                found = [m for m in cls(kind).__members__ if m.endswith(member)]
                if member != "section":
                    assert int(value, 0) in [int(cls(kind)[m]) for m in found], f"{kind} {member} {value}"
                    pairs += 1
    assert len(rows) == 20 and pairs >= 60


def structs_of_nodes():
    types = {a["objc_type"] for c in CLASSES.values() for m in c["methods"] for a in m["args"]}
    types |= {m["returns"] for p in PROTOCOLS.values() if p["header"] == HEADER for m in p["methods"]}
    return sorted(types & STRUCTS.keys())


@pytest.mark.parametrize("name", structs_of_nodes())
def test_struct(name):
    fields = [snake(field["name"]) for field in STRUCTS[name]["fields"]]
    values = dict(zip(fields, range(1, len(fields) + 1), strict=True))
    for value in (cls(name)(*values.values()), cls(name)(**values)):
        assert {field: getattr(value, field) for field in fields} == values
        setattr(value, fields[0], 9)
        assert getattr(value, fields[0]) == 9


# --- protocols


def check_protocol(name):
    """Every callback exists on the class that applications derive from, under the name of the rule."""
    callbacks = [m["selector"] for m in PROTOCOLS[name]["methods"]] + [
        m["selector"] for m in FACTS["omitted_by_source"] if m["on"] == name
    ]
    for selector in callbacks:
        CHECKED["callbacks"] += 1
        if excused(f"{name} {selector}"):
            continue
        # update…With… comes twice: for the one that is given a command buffer that word is kept, else both had one name.
        python_name = snake(selector.split(":")[0]) if "WithCommandBuffer" in selector else method_name(selector)
        if "ForSourceImages" in selector:
            python_name = snake(selector.split("For")[0])
        assert callable(getattr(cls(name), python_name)), python_name
    for fact in PROTOCOLS[name]["properties"]:
        CHECKED["callbacks"] += 1
        assert excused(f"{name}.{fact['name']}") and callable(getattr(cls(name), snake(fact["name"])))


DERIVED = [p for p in PROTOCOLS if p.endswith("DataSource")] + ["MPSNNPadding"]


@pytest.mark.parametrize("name", DERIVED)
def test_protocol(name):
    check_protocol(name)


def test_what_the_callbacks_of_our_own_sources_answer():
    weights = mpsnn.ConvolutionWeights(
        mpsnn.MPSCNNConvolutionDescriptor(1, 1, 2, 3), biases=np.arange(3, dtype=np.float32)
    )
    assert weights.bias_terms().tolist() == [0, 1, 2]
    assert weights.lookup_table_for_uint8_kernel() is weights.ranges_for_uint8_kernel() is None
    assert weights.weights_layout() == mpsnn.MPSCNNConvolutionWeightsLayoutOHWI
    assert weights.kernel_weights_data_type() == mpsnn.MPSDataTypeFloat32
    batch = mpsnn.BatchNormalizationWeights(2)
    assert [v().tolist() for v in (batch.gamma, batch.beta, batch.mean, batch.variance)] == [
        [1, 1],
        [0, 0],
        [0, 0],
        [1, 1],
    ]
    assert mpsnn.InstanceNormalizationWeights(2).gamma().tolist() == [1, 1]


def test_optional_callbacks_that_an_application_leaves_out_answer_nothing():
    class Source(mpsnn.MPSCNNConvolutionDataSource):
        def bias_terms(self):
            return super().bias_terms()

    source = Source()
    assert source.bias_terms() is source.lookup_table_for_uint8_kernel() is None
    assert source.load() is True and source.label() == ""
    assert source.update(None, None) is False

    class Statistics(mpsnn.MPSCNNBatchNormalizationDataSource):
        pass

    assert Statistics().mean() is Statistics().gamma() is None
    assert Statistics().update_gamma_and_beta(None) is Statistics().update_mean_and_variance(None) is False


def recorded_callback(monkeypatch, selector):
    """A Callback that notes what its method for this selector is given."""
    name, calls = method_name(selector), []
    answer = getattr(Callback, name)
    monkeypatch.setattr(Callback, name, lambda self, *given: calls.append(given) or answer(self, *given))
    return Callback(), calls


def run(node, *shapes):
    graph = mpsnn.MPSNNGraph("cpu", node.result_image)
    return graph.run([np.ones(shape, np.float32) for shape in shapes]).numpy()


def test_callbacks_of_nodes_are_called_by_the_names_of_the_rule(monkeypatch):
    selectors = {
        p: [m["selector"] for m in PROTOCOLS[p]["methods"]] for p in PROTOCOLS if PROTOCOLS[p]["header"] == HEADER
    }
    descriptor = mpsnn.MPSImageDescriptor

    callback, calls = recorded_callback(monkeypatch, *selectors["MPSNNGramMatrixCallback"])
    gram = mpsnn.MPSNNGramMatrixCalculationNode(image())
    gram.property_call_back = callback
    assert run(gram, (1, 2, 3, 2)).ravel().tolist() == [3.0] * 4  # 0.5 * 6 pixels
    assert [isinstance(given, descriptor) for given in calls[0]] == [True, True]

    callback, calls = recorded_callback(monkeypatch, *selectors["MPSNNLossCallback"])
    loss = mpsnn.MPSNNForwardLossNode(
        image(),
        image("labels"),
        mpsnn.MPSCNNLossDescriptor(mpsnn.MPSCNNLossType.MeanAbsoluteError, mpsnn.MPSCNNReductionType.Sum),
    )
    loss.property_call_back = callback
    run(loss, (1, 2, 3, 2), (1, 2, 3, 2))
    assert [isinstance(given, descriptor) for given in calls[0]] == [True, True]

    callback, calls = recorded_callback(monkeypatch, *selectors["MPSImageTransformProvider"])
    scale = mpsnn.MPSNNBilinearScaleNode(image("a handle"), transform_provider=callback, output_size=(3, 2, 1))
    assert run(scale, (1, 2, 3, 1)).shape == (1, 2, 3, 1)
    assert isinstance(calls[0][0], descriptor) and calls[0][1] == "a handle"

    class Handle:  # MPSHandle
        def label(self):
            return "a label"

    handle = Handle()
    assert mpsnn.MPSNNImageNode(handle).handle is handle
    assert selectors.keys() == {
        "MPSNNGramMatrixCallback",
        "MPSNNLossCallback",
        "MPSImageTransformProvider",
        "MPSHandle",
        "MPSNNTrainableNode",
    }


# --- all of it


def test_everything_was_checked(capsys):
    """Runs the checks over all facts, prints what they looked at and compares it with what the facts hold."""
    CHECKED.clear()
    for name in CLASSES:
        for check in (check_class, check_initializers, check_properties):
            check(name)
    for name in ENUMS:
        check_enum(name)
    for name in DERIVED:
        check_protocol(name)
    with capsys.disabled():
        print("\nchecked against Apple's API:", ", ".join(f"{count} {what}" for what, count in CHECKED.items()))
    assert CHECKED["classes"] == len(CLASSES) == FACTS["counts"]["classes_in_MPSNNGraphNodes"] == 112
    assert CHECKED["initializers"] == sum(len(initializers(name)) for name in CLASSES)
    assert CHECKED["properties"] == sum(len(properties(name)) for name in CLASSES)
    assert CHECKED["enums"] == FACTS["counts"]["enums"] and CHECKED["enum values"] == FACTS["counts"]["enum_values"]
    assert CHECKED["unavailable"] == sum(len(c["unavailable"]) for c in CLASSES.values())
    assert used_exceptions == EXCEPTIONS.keys()
