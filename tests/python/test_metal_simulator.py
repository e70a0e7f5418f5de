# SPDX-License-Identifier: Apache-2.0
"""The simulator itself: its toy classes have Apple's messages with Apple's types, and refuse what Apple's frameworks would refuse."""

import ctypes
import subprocess
import sys
from pathlib import Path

import mps_judge as judge
import mpsnn
import numpy as np
import pytest
from graph_cases import weights
from metal_cases import IS_SIMULATED, complaints, nothing_is_left  # noqa: F401
from test_metal_source import CLASSES as RUN_TIME_CLASSES

pytestmark = [
    pytest.mark.metal,
    pytest.mark.skipif(not IS_SIMULATED, reason="needs the simulator: MPSNN_METAL=ON on Linux"),
]
if IS_SIMULATED:
    import objc_runtime as objc

#: Abstract classes: Apple publishes their initializers, but an object of theirs has no meaning.
ABSTRACT = {"MPSCNNNormalizationNode", "MPSCNNPoolingNode", "MPSCNNPoolingGradientNode", "MPSNNArithmeticGradientNode"}
ABSTRACT |= {"MPSNNBinaryArithmeticNode", "MPSNNScaleNode", "MPSNNUnaryReductionNode"}
#: Overrides of NSObject's methods.
OF_NSOBJECT = {"dealloc", "init", "respondsToSelector:", "methodSignatureForSelector:", "forwardInvocation:"}
#: On Linux a block is no object: the toy methods take a pointer.
TAKES_BLOCK = {"executeAsyncWithSourceImages:completionHandler:", "trainingGraphWithSourceGradient:nodeHandler:"}


def implemented():
    """(class, + or -, selector, encoding) of the toy classes' methods; sim_… are their own business."""
    for name, cls in objc.toy_classes().items():
        for kind, target in (("-", cls), ("+", objc.metaclass(cls))):
            for selector, encoding in objc.methods(target):
                if not selector.startswith("sim_") and selector not in OF_NSOBJECT:
                    yield (
                        name,
                        kind,
                        selector,
                        encoding.replace("^v24", "@?24") if selector in TAKES_BLOCK else encoding,
                    )


def test_no_toy_method_is_unknown_to_the_facts_or_has_other_types():
    rows = list(implemented())
    assert len(rows) > 800
    assert list(judge.wrong_implementations(rows)) == []


@pytest.mark.parametrize(
    "wrong", [("fillValue", "d16@0:8"), ("fillValues", "f16@0:8"), ("setFillValue:", "v24@0:8d16")]
)
def test_a_wrong_toy_method_would_be_found(wrong):
    assert len(list(judge.wrong_implementations([("MPSNNPadNode", "-", *wrong)]))) == 1


def test_every_toy_class_has_apples_superclass():
    for name, cls in objc.toy_classes().items():
        assert name in judge.CLASSES, name
        parent = objc.class_name(objc.superclass(cls)).decode()
        expected = judge.CLASSES[name]["superclass"]
        assert parent == (expected if expected in judge.CLASSES else "SimObject"), name


def test_every_node_class_of_the_facts_is_there_whole():
    have = {row[:3] for row in implemented()}
    nodes = [name for name in judge.CLASSES if name.endswith("Node")]
    assert len(nodes) == judge.FACTS["counts"]["classes_ending_in_Node"]
    missing = []
    for owner, kind, selector in judge.expected_messages():
        if owner not in nodes or (owner in ABSTRACT and selector.startswith("init")):
            continue
        line = [fact["name"] for fact in judge.line(owner) if fact["kind"] == "class"]
        if not any((name, kind, selector) in have for name in line):
            missing.append(f"{owner} {kind}{selector}")
    assert missing == []


def test_run_time_classes_have_the_types_of_their_protocols_in_the_runtime():
    """test_metal_source.py judges the source against the protocols; here the runtime is asked what it was given."""
    node = mpsnn.MPSCNNConvolutionNode(mpsnn.MPSNNImageNode("image"), weights(2, 4))
    for norm, source in (
        (mpsnn.MPSCNNBatchNormalizationNode, mpsnn.BatchNormalizationWeights(4)),
        (mpsnn.MPSCNNInstanceNormalizationNode, mpsnn.InstanceNormalizationWeights(4)),
        (mpsnn.MPSCNNGroupNormalizationNode, mpsnn.GroupNormalizationWeights(4, 2)),
    ):
        node = norm(node.result_image, source)
    graph = mpsnn.MPSNNGraph("metal", node.result_image)
    assert graph.source_image_handles
    judged = set()
    for name, protocol, written in RUN_TIME_CLASSES:
        if cls := objc.get_class(name.encode()):  # the others are made when they are first needed
            judged.add(protocol)
            omitted = {m["selector"] for m in judge.FACTS["omitted_by_source"] if m["on"] == protocol}
            encodings = dict(objc.methods(cls))
            rows = [(f"<{protocol}>", "-", s, encodings[s]) for s, _ in written if s not in omitted]
            assert list(judge.wrong_implementations(rows)) == []
    kinds = ("Convolution", "BatchNormalization", "InstanceNormalization", "GroupNormalization")
    assert judged >= {f"MPSCNN{kind}DataSource" for kind in kinds}


# --- images


class Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("x", "y", "z", "width", "height", "depth")]


class Channels(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_size_t), ("count", ctypes.c_size_t)]


def image(width, height, channels, channel_format=4):
    described = objc.send(
        objc.get_class(b"MPSImageDescriptor"),
        "imageDescriptorWithChannelFormat:width:height:featureChannels:",
        channel_format,
        width,
        height,
        channels,
    )
    device = objc.function("MTLCreateSystemDefaultDevice", objc.POINTER)()
    return objc.new("MPSImage", "initWithDevice:imageDescriptor:", objc.Object(device), objc.Object(described))


def address(array):
    return objc.Object(array.ctypes.data)


@pytest.fixture
def pool(nothing_is_left):  # noqa: F811 - which looks when the pool is drained
    with objc.pool():
        yield


@pytest.mark.parametrize("dtype, channel_format", [(np.float32, 4), (np.float16, 3), (np.uint8, 1), (np.uint16, 2)])
def test_bytes_come_back_in_either_layout(pool, dtype, channel_format):
    numbers = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(dtype)  # height, width, channels
    made = image(4, 3, 5, channel_format)
    objc.send(made, "writeBytes:dataLayout:imageIndex:", address(numbers), 0, 0, result=None)
    planar = np.zeros((5, 3, 4), dtype)
    objc.send(made, "readBytes:dataLayout:imageIndex:", address(planar), 1, 0, result=None)
    assert np.array_equal(planar, numbers.transpose(2, 0, 1))
    again = image(4, 3, 5, channel_format)
    objc.send(again, "writeBytes:dataLayout:imageIndex:", address(planar), 1, 0, result=None)
    back = np.zeros_like(numbers)
    objc.send(again, "readBytes:dataLayout:imageIndex:", address(back), 0, 0, result=None)
    assert np.array_equal(back, numbers)


def test_a_region_and_a_range_of_channels(pool):
    numbers = np.arange(3 * 4 * 5).reshape(3, 4, 5).astype(np.float32)
    made = image(4, 3, 5)
    objc.send(made, "writeBytes:dataLayout:imageIndex:", address(numbers), 0, 0, result=None)
    part = np.zeros((2, 3, 2), np.float32)
    name = "readBytes:dataLayout:bytesPerRow:region:featureChannelInfo:imageIndex:"
    kinds = [objc.POINTER, ctypes.c_size_t, ctypes.c_size_t, Region, Channels, ctypes.c_size_t]
    read = ctypes.CFUNCTYPE(None, objc.POINTER, objc.POINTER, *kinds)(("objc_msgSend", objc.LIBRARY))
    read(
        made.pointer,
        objc.selector(name.encode()),
        part.ctypes.data,
        0,
        part[0].nbytes,
        Region(1, 1, 0, 3, 2, 1),
        Channels(2, 2),
        0,
    )
    assert np.array_equal(part, numbers[1:3, 1:4, 2:4])


# --- what is refused

REFUSALS = {
    "a committed buffer": "was committed already",
    "waiting for nothing": "was never committed",
    "an image without size": "no size may be 0",
    "a temporary image read": "lives in memory of the GPU alone",
    "a temporary image revived": "was given back",
    "no image node": "an image node is missing",
    "a window of nothing": "must be at least 1",
    "no device": "the device is missing",
}


def refused(what):
    """Does, in a process of its own, what must end in an Objective-C exception."""
    device = objc.Object(objc.function("MTLCreateSystemDefaultDevice", objc.POINTER)())
    queue = objc.Object(objc.send(device, "newCommandQueue"))
    buffer = objc.Object(objc.send(queue, "commandBuffer"))
    node = objc.new("MPSNNImageNode", "initWithHandle:", None)
    if what == "a committed buffer":
        objc.send(buffer, "commit", result=None)
        objc.send(buffer, "commit", result=None)
    elif what == "waiting for nothing":
        objc.send(buffer, "waitUntilCompleted", result=None)
    elif what == "an image without size":
        image(0, 1, 1)
    elif what.startswith("a temporary image"):
        described = objc.send(
            objc.get_class(b"MPSImageDescriptor"),
            "imageDescriptorWithChannelFormat:width:height:featureChannels:",
            4,
            1,
            1,
            1,
        )
        made = objc.send(
            objc.get_class(b"MPSTemporaryImage"),
            "temporaryImageWithCommandBuffer:imageDescriptor:",
            buffer,
            objc.Object(described),
        )
        if what.endswith("read"):
            objc.send(made, "readBytes:dataLayout:imageIndex:", address(np.zeros(1, np.float32)), 0, 0, result=None)
        objc.send(made, "setReadCount:", 0, result=None)
        objc.send(made, "setReadCount:", 1, result=None)
    elif what == "no image node":
        objc.new("MPSCNNNeuronReLUNode", "initWithSource:", None)
    elif what == "a window of nothing":
        objc.new("MPSCNNPoolingMaxNode", "initWithSource:filterSize:", node, 0)
    elif what == "no device":
        objc.new("MPSNNGraph", "initWithDevice:resultImage:", None, node)


@pytest.mark.parametrize("what", REFUSALS)
def test_what_apple_aborts_for_raises_an_exception_that_says_so(what):
    program = f"import mpsnn; mpsnn.devices(); import test_metal_simulator as t; from objc_runtime import pool\nwith pool(): t.refused({what!r})"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    assert result.returncode != 0
    assert REFUSALS[what] in result.stderr


# --- the check after every test


def test_an_object_that_is_left_is_noticed():
    left = objc.send(objc.send(objc.get_class(b"MPSNNImageNode"), "alloc"), "initWithHandle:", None)
    assert list(complaints("")) == ["1 objects are left, listed on stderr"]
    objc.send(objc.Object(left), "release", result=None)
    assert list(complaints("")) == []


def test_an_object_autoreleased_without_a_pool_is_noticed():
    program = "import mpsnn; mpsnn.devices(); import objc_runtime as objc; objc.new('MPSNNImageNode', 'initWithHandle:', None)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert list(complaints(result.stderr)) == ["an object was autoreleased without a pool"]


def test_the_device_says_what_it_is():
    with objc.pool():
        device = objc.function("MTLCreateSystemDefaultDevice", objc.POINTER)()
        assert b"Simulated" in objc.send(objc.send(device, "name"), "UTF8String", result=ctypes.c_char_p)
        assert mpsnn.default_device().name != "metal"
