# SPDX-License-Identifier: Apache-2.0
"""Files that tools write are what the tools write now."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tool", ["generate_enums.py", "generate_node_table.py", "generate_preflight_table.py"])
def test_a_generated_file_is_not_stale(tool):
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / tool, "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_node_table_has_every_class_of_the_api_facts():
    import json

    facts = json.loads((ROOT / "tools" / "mps_api.json").read_text())
    names = [c["name"] for c in facts["classes"] if c["header"] == "MPSNNGraphNodes.h"]
    rows = [
        line.split("`")[1] for line in (ROOT / "docs" / "nodes.md").read_text().splitlines() if line.startswith("| `")
    ]
    assert len(names) == 112
    assert rows == sorted(names)
