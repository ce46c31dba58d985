"""Scripts under another Python: their answers, their last words, and that none outlives what started it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transact.errors import Failure
from transact.evaluation.other_python import ask

ANSWERS = "import json, sys; from pathlib import Path; Path(sys.argv[2]).write_text(json.dumps(sys.path + [__name__]))"


def write_script(folder: Path, text: str) -> Path:
    (script := folder / "script.py").write_text(text)
    return script


def test_a_script_has_no_folder_of_ours_on_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "ours"))
    *path, name = ask(Path(sys.executable), write_script(tmp_path, ANSWERS), {})
    assert name == "__main__" and not {str(tmp_path), str(tmp_path / "ours")} & set(path)


def test_the_last_words_of_a_script(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"script\.py, run by .*: ended with code 1: ValueError: so"):
        ask(Path(sys.executable), write_script(tmp_path, "raise ValueError('so')"), {})


def test_a_script_ends_with_what_started_it(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = write_script(
        tmp_path, f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    asks = f"from pathlib import Path; from transact.evaluation.other_python import ask; ask(Path({sys.executable!r}), "
    with subprocess.Popen([sys.executable, "-c", f"{asks}Path({str(script)!r}), {{}})"]) as parent:
        wait_for(lambda: told.is_file() and told.read_text() != "")
        parent.kill()
    wait_for(lambda: not is_alive(int(told.read_text())))


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
