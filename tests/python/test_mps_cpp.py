# SPDX-License-Identifier: Apache-2.0
"""mps-cpp says what Apple's API facts say: every message, constant and struct, as the C++ compiler understood it."""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import mps_judge as judge
import pytest
from metal_tools import ROOT, clang, need_linux_compiler, python_tool, run

METAL = ROOT / "tests" / "metal"

#: The only files that may name a message by hand: how one is sent, and classes that are made at run time.
SENDERS = {
    "cpp/mps-cpp/MetalPerformanceShaders/MPSMessage.hpp",
    "cpp/src/backends/metal/objc.cpp",
    "cpp/src/backends/metal/objc.hpp",
    "cpp/src/backends/metal/runtime_class.cpp",
    "cpp/src/backends/metal/runtime_class.hpp",
    "examples/mps_cpp/data_source.cpp",
}


def listing(folder, name, *flags):
    """{kind of line: rows} that a program with the table prints."""
    need_linux_compiler()
    program = folder / name
    run(*clang(*flags, METAL / "list_messages.cpp", "-o", program))
    rows = {"message": [], "constant": [], "struct": []}
    for text in run(program).splitlines():
        kind, *row = text.split("\t")
        rows[kind].append(row)
    return rows


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    return listing(tmp_path_factory.mktemp("mps_cpp"), "list_messages")


def test_the_headers_are_what_the_generator_writes():
    python_tool("generate_mps_cpp.py", "--check")


def test_a_stale_or_foreign_header_is_found(tmp_path):
    for path in ("tools", "cpp/mps-cpp", "tests/metal"):
        run("cp", "-r", "--parents", path, tmp_path, cwd=ROOT)
    check = ["python3", tmp_path / "tools" / "generate_mps_cpp.py", "--check"]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    header = tmp_path / "cpp" / "mps-cpp" / "MetalPerformanceShaders" / "MPSNNGraph.hpp"
    header.write_text(header.read_text().replace("NS::UInteger", "unsigned", 1))
    (header.parent / "MPSExtra.hpp").write_text("")
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "MPSNNGraph.hpp" in result.stderr
    assert "MPSExtra.hpp" in result.stderr


def test_each_header_compiles_alone():
    need_linux_compiler()
    headers = sorted((ROOT / "cpp" / "mps-cpp" / "MetalPerformanceShaders").glob("*.hpp"))
    assert headers

    def compile_alone(header):
        text = f"#include <MetalPerformanceShaders/{header.name}>\n"
        command = clang("-fsyntax-only", "-x", "c++", "-")
        result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        return f"{header.name}\n{result.stderr}" if result.returncode else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = [problem for problem in pool.map(compile_alone, headers) if problem]
    assert not problems, "\n".join(problems)


def test_every_message_is_declared_so_by_the_facts(listed):
    assert list(judge.wrong_messages(listed["message"])) == []


def test_no_message_of_the_facts_is_missing(listed):
    assert len(listed["message"]) > 1900
    assert list(judge.missing_messages(listed["message"])) == []


def test_constants_and_structs(listed):
    assert len(listed["constant"]) == judge.FACTS["counts"]["enum_values"]
    assert list(judge.wrong_constants(listed["constant"])) == []
    assert len(listed["struct"]) == judge.FACTS["counts"]["structs"]
    assert list(judge.wrong_structs(listed["struct"])) == []


def test_each_seeded_mistake_is_reported(listed, tmp_path):
    """A judge that never complains proves nothing."""
    seeded = listing(tmp_path, "seeded", "-DMPS_CPP_SEEDED_MISTAKES")["message"]
    mistakes = [row for row in seeded if row not in listed["message"]]
    in_header = re.findall(r"^MPS_MESSAGE\((\w+)", (METAL / "seeded_mistakes.hpp").read_text(), re.MULTILINE)
    in_header.remove("missing_colon")
    assert len(mistakes) == len(in_header) == 16
    complaints = list(judge.wrong_messages(seeded))
    assert len(complaints) == 16
    for row, complaint in zip(mistakes, complaints, strict=True):
        assert complaint.startswith(f"{row[0]} {row[1]}{row[2]}: ")


def test_a_missing_colon_does_not_compile(tmp_path):
    need_linux_compiler()
    flags = ["-DMPS_CPP_SEEDED_MISTAKES", "-DMPS_CPP_MISSING_COLON", "-fsyntax-only"]
    result = subprocess.run(clang(*flags, METAL / "list_messages.cpp"), capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "one argument for each colon: setFillValue" in result.stderr


@pytest.mark.parametrize("seed", range(5))
def test_a_message_taken_away_is_missed(listed, seed):
    gone = listed["message"][seed * 397]
    rest = [row for row in listed["message"] if row != gone]
    assert any(text.startswith(f"{gone[0]} {gone[1]}{gone[2]}") for text in judge.missing_messages(rest))


def test_wrong_constants_and_structs_are_reported(listed):
    enum, constant, kind, value = listed["constant"][0]
    for wrong in ([enum, constant, "I", value], [enum, constant, kind, int(value) + 1]):
        assert len(list(judge.wrong_constants([wrong, *listed["constant"][1:]]))) == 1
    assert len(list(judge.wrong_constants(listed["constant"][1:]))) == 1
    name, text, size = listed["struct"][0]
    for wrong in ([name, text.replace("Q", "I"), size], [name, text, int(size) + 8]):
        assert len(list(judge.wrong_structs([wrong, *listed["struct"][1:]]))) == 1


def test_implementations_are_judged_by_their_encodings():
    right = [
        ("MPSNNPadNode", "-", "fillValue", "f16@0:8"),
        ("MPSNNGraph", "-", "setOutputStateIsTemporary:", "v20@0:8c16"),
        ("MPSCNNKernel", "-", "setOffset:", "v40@0:8{?=qqq}16"),
        ("<MPSCNNConvolutionDataSource>", "-", "load", "B16@0:8"),
        ("<MPSCNNConvolutionDataSource>", "-", "weights", "^v16@0:8"),
        ("<MPSCNNConvolutionDataSource>", "-", "dealloc", "v16@0:8"),
    ]
    wrong = [
        ("MPSNNPadNode", "-", "fillValue", "d16@0:8"),
        ("MPSCNNKernel", "-", "setOffset:", "v32@0:8{?=qq}16"),
        ("<MPSCNNConvolutionDataSource>", "-", "dataType", "Q16@0:8"),
        ("<MPSCNNConvolutionDataSource>", "-", "wieghts", "^v16@0:8"),
        ("<MPSCNNConvolutionDataSource>", "-", "load", "B24@0:8@16"),
    ]
    assert list(judge.wrong_implementations(right)) == []
    assert len(list(judge.wrong_implementations(wrong))) == len(wrong)


def test_the_live_check_sees_what_the_runtime_has(tmp_path):
    need_linux_compiler()
    program = tmp_path / "live_table"
    library = run("gcc", "-print-file-name=libobjc.so").strip()
    if "/" not in library:
        pytest.skip("GCC's Objective-C runtime is not installed")
    run(*clang(METAL / "live" / "live_table.cpp", METAL / "live" / "live_table_toys.cpp", "-o", program, library))
    result = subprocess.run([program, "--partial"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    complaint, counts = result.stdout.splitlines()
    assert complaint == "MPSNNPadNode -fillValue: the runtime has d16@0:8, mps-cpp sends f"
    assert counts.startswith("3 messages as declared, 1 different, ")
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert "MPSNNGraph -reloadFromDataSources: no such class" in result.stdout


def test_only_the_base_header_and_run_time_classes_send_by_name():
    found = set()
    for folder in ("cpp", "python", "examples"):
        for path in (ROOT / folder).rglob("*.[chm]*"):
            if re.search(r"\b(sel_registerName|objc_msgSend\w*|sendMessage)\b", path.read_text()):
                found.add(path.relative_to(ROOT).as_posix())
    assert "cpp/mps-cpp/MetalPerformanceShaders/MPSMessage.hpp" in found
    assert found <= SENDERS


def test_the_data_source_of_the_example_is_what_its_protocol_asks_for():
    text = (ROOT / "examples" / "mps_cpp" / "data_source.cpp").read_text().replace("kBoolResult", '"B@:"')
    methods = re.findall(r'add\("([\w:]+)", \w+, "(.*?)"\)', text)
    protocol = "MPSCNNConvolutionDataSource"
    rows = [(f"<{protocol}>", "-", selector, types) for selector, types in methods]
    assert list(judge.wrong_implementations(rows)) == []
    required = {m["selector"] for m in judge.PROTOCOLS[protocol]["methods"] if not m.get("optional")}
    assert required | {"copyWithZone:"} == {selector for selector, _ in methods}
