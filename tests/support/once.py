"""What takes long is made once, also where several processes run the tests."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
    """A folder that all processes of this test run share, and what `make(folder)` returned (JSON) for the first."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = root / name, root / f"{name}.json"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_file():
            folder.mkdir()  # one who failed at it has told why: the next does not try again
            made.write_text(json.dumps(make(folder)))
        return folder, json.loads(made.read_text())
