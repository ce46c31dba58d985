"""docs/tutorial.md does what it says: its blocks are run, in order, and leave what the text promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY, environment
from transact.files import read_json

BLOCK = re.compile(r"<!-- run -->\n```(bash|python)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block printed; in a folder that looks like a clone."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "transact").symlink_to(REPOSITORY / "transact")
    blocks = BLOCK.findall((REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    assert len(blocks) == 7
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = []
    for language, code in blocks:
        interpreter = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [sys.executable, "-c"]
        ended = subprocess.run(
            [*interpreter, code],
            cwd=folder,
            env=environment() | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, code + ended.stdout + ended.stderr
        printed.append(ended.stdout)
    return [str(folder), *printed]


def test_the_tutorial_leaves_what_it_promises(said: list[str]) -> None:
    folder, planned, pruned, again, looked, used, gained, swept = Path(said[0]), *said[1:]
    assert "memory per rank" in planned
    assert "round 1 recovered" in pruned
    assert "round_01/recover: already finished" in again
    assert "efficiency: already finished" in again  # only the new wish is done
    assert [path.suffix for path in (folder / "outputs" / "first" / "gguf").iterdir()] == [".gguf"]
    assert '"remove_fraction"' in looked
    assert "report.html" in looked
    assert used.startswith("LlamaForCausalLM")
    assert "prefill" in gained
    assert "report.html" in swept


def test_a_sweep_runs_each_point_in_processes_of_its_own(said: list[str]) -> None:
    sweep = Path(said[0]) / "outputs" / "trade_off"
    results = [read_json(path) for path in sweep.glob("*/result.json")]
    assert [path for path in (sweep / "shared").glob("gram-*") if path.is_dir()] == []  # large, and of no use any more
    reached = {result["remove_fraction"]["asked"]: result["remove_fraction"]["reached"] for result in results}
    assert reached == {0.2: pytest.approx(0.2, abs=0.02), 0.4: pytest.approx(0.4, abs=0.02)}
    processes = [path.name.split("_")[0] for path in sweep.glob("*/logs/*_0_log.out")]
    assert len(set(processes)) == 2
    for folder in (sweep, *(path.parent for path in sweep.glob("*/result.json"))):
        assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
