"""Scripts that run under the Python of another environment, with other versions of packages than this one's."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transact.errors import LONGEST_REASON, Failure, killed_by, one_line

# Runs a script as `python SCRIPT` does, in a process that ends with the one that started it, whatever ends that:
# PR_SET_PDEATHSIG, as in transact/export/k_quants.py. A parent that was gone before is noticed too.
PRELUDE = """\
import ctypes, os, runpy, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("what started it is gone")
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
OF_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # would put this environment's packages before the other's


def ask(python: Path, script: Path, question: Mapping[str, Any], log: Path | None = None) -> dict[str, Any]:
    """Return the answer of a script that runs under another Python.

    Args:
        log: gets what it prints, as it does so; None: nothing keeps it.

    Raises:
        Failure: it ended with an error; its last line.
    """
    variables = {name: value for name, value in os.environ.items() if name not in OF_PYTHON}
    variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="transact-") as where:
        asked, answered = Path(where, "question.json"), Path(where, "answer.json")
        printed = log or Path(where, "printed")
        printed.parent.mkdir(parents=True, exist_ok=True)
        asked.write_text(json.dumps(question), encoding="utf-8")
        # -I: no folder of ours is on the path, whose files would be taken for top-level modules.
        files = map(str, (script.absolute(), asked, answered))
        command = [str(python.absolute()), "-I", "-c", PRELUDE, str(os.getpid()), *files]
        with printed.open("wb") as file:  # while it works: for those who want to see how far it is
            done = subprocess.run(command, cwd=where, env=variables, stdout=file, stderr=file, check=False)
        said = printed.read_text(encoding="utf-8", errors="replace")
        if done.returncode == 0:
            found: dict[str, Any] = json.loads(answered.read_bytes())
            return found
    last = one_line(next((line for line in reversed(said.splitlines()) if line.strip()), "nothing"), LONGEST_REASON)
    kept = "" if log is None else f"; all that it said: {str(log)!r}"
    end = killed_by(-done.returncode) if done.returncode < 0 else f"ended with code {done.returncode}"
    raise Failure(f"{script.name}, run by {str(python)!r}: {end}: {last}{kept}")


def asked(option: str, python: Path, script: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of a script, under a Python that an option of a command names.

    Raises:
        ValueError: there is no such Python, or the script ends with an error.
    """
    if not python.is_file() or not os.access(python, os.X_OK):
        raise ValueError(f"{option}={str(python)!r} is no Python that can be run")
    try:
        return ask(python, script, question)
    except (Failure, OSError) as error:
        raise ValueError(f"{option}={str(python)!r} cannot be used: {one_line(error, LONGEST_REASON)}") from None
