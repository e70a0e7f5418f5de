# SPDX-License-Identifier: Apache-2.0
"""What can be said about the Metal engine from its text: no compiler, no device."""

import re
from pathlib import Path

import mps_judge as judge
import pytest
from mpsnn import check_cases

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "cpp" / "src" / "backends" / "metal"
SOURCES = {path.name: path.read_text() for path in sorted(ENGINE.glob("*.[ch]pp"))}


def test_every_node_class_is_lowered():
    rows = re.findall(r'^\s+\{"(MPS\w+Node)", \w+', "\n".join(SOURCES.values()), re.MULTILINE)
    assert sorted(rows) == sorted(set(check_cases.node_classes()) - check_cases.BASES)


def test_each_guess_about_mps_has_its_line_in_the_document_and_a_test_that_settles_it():
    in_code = re.findall(r"MAC-UNVERIFIED: ([\w-]+):", "\n".join(SOURCES.values()))
    assert len(in_code) == "\n".join(SOURCES.values()).count("MAC-UNVERIFIED"), "each mark needs a name"
    rows = re.findall(r"^\| ([\w-]+) \| .+ \| `(test_\w+)` \|$", (ROOT / "docs" / "metal.md").read_text(), re.MULTILINE)
    assert sorted(in_code) == sorted(mark for mark, _ in rows)
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "python").glob("test_metal*.py"))
    for _, test in rows:
        assert f"def {test}(" in tests


def runtime_classes():
    """(class, protocol, [(selector, types)]) of every class made at run time."""
    text = SOURCES["data_sources.cpp"].replace("\\\n", " ")
    for name, methods in re.findall(r"#define (MPSNN_\w+_METHODS)(.*)", text):
        text = text.replace(name + ",", methods + ",")
    for source in (text, SOURCES["callbacks.cpp"]):
        for name, protocol, body in re.findall(
            r'RuntimeClass made\(\s*"(\w+)",\s*"(\w+)",(.*?)\}\);', source, re.DOTALL
        ):
            methods = re.findall(r'method\(\s*"([\w:]+)",\s*[\w<>:]+,\s*((?:MPSNN_BOOL )?"[^"]*")\)', body)
            yield name, protocol, [(s, t.replace("MPSNN_BOOL ", "B").replace('"', "")) for s, t in methods]


CLASSES = list(runtime_classes())


def test_all_run_time_classes_are_found():
    assert len(CLASSES) == "".join(SOURCES.values()).count("RuntimeClass made(") == 9


@pytest.mark.parametrize("name, protocol, methods", CLASSES, ids=[row[0] for row in CLASSES])
def test_run_time_classes_are_what_their_protocols_ask_for(name, protocol, methods):
    omitted = {m["selector"] for m in judge.FACTS["omitted_by_source"] if m["on"] == protocol}
    rows = [(f"<{protocol}>", "-", selector, types) for selector, types in methods if selector not in omitted]
    assert rows
    assert list(judge.wrong_implementations(rows)) == []
    facts = judge.PROTOCOLS[protocol]
    required = {m["selector"] for m in facts["methods"] if not m.get("optional")}
    required |= {p[way] for p in facts.get("properties", []) for way in ("getter", "setter") if p.get(way)}
    assert required <= {selector for selector, _ in methods}
