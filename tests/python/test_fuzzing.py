# SPDX-License-Identifier: Apache-2.0
"""5,000 constructor calls with random and hostile arguments, in a process of its own (docs/fuzzing.md).

Graph files and geometries are tried by the C++ tests.
"""

import subprocess
import sys
from pathlib import Path

COUNT = 5000
FUZZER = Path(__file__).parents[1] / "fuzz" / "constructors.py"


def test_constructors_refuse_or_work(tmp_path):
    progress = tmp_path / "progress"
    command = [sys.executable, str(FUZZER), str(COUNT), "0", str(progress)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    where = progress.read_text() if progress.exists() else "before the first call"
    assert result.returncode == 0, (
        f"seed {where}: ended with {result.returncode}\n{result.stdout}\n{result.stderr[-5000:]}"
    )
    assert result.stdout.startswith(f"{COUNT} calls")
