"""Run a whole job from Python: start the command in processes of its own, and return its result as a value."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transact.config.compose import PACKAGE, conf_folder
from transact.config.pruning import VARIANTS
from transact.config.request import quoted
from transact.config.run import RunConfig
from transact.config.setting import all_fields, is_dictionary, require
from transact.errors import DONE, ERROR, REFUSED, Failure, Refusal
from transact.files import read_json

LAST_LINES = 20  # of the command's output that are kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The result of a finished job.

    Attributes:
        output_dir: its folder, which `docs/report.md` and the README describe.
        export: the model folder that stock software loads.
        summary: result.json: `dense` and `pruned` with parameters, perplexity and more, `rounds`, `seconds`.
    """

    output_dir: Path
    export: Path
    summary: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """Number of parameters of the exported model."""
        return int(self.summary["pruned"]["parameters"])

    @property
    def perplexity(self) -> float:
        """Perplexity of the exported model on the held-out text."""
        return float(self.summary["pruned"]["perplexity"])


def prune(
    model: str | Path,
    output_dir: str | Path,
    *,
    remove_fraction: float | None = None,
    text: Sequence[str | Path] | None = None,
    held_out: Sequence[str | Path] | None = None,
    processes: int | None = None,
    **settings: Any,
) -> Result:
    """Run the job of `python -m transact.run` and wait for its end. Called again it goes on, or returns at once.

    The job has processes of its own, so that nothing of it stays in this one; its output is printed here. After
    Ctrl-C it saves, and the same call goes on.

    Args:
        model: a model folder, or an id on the Hub.
        output_dir: folder of the run, for all of its files.
        remove_fraction: share of all parameters to remove. None: the default of the settings, 0.5.
        text: files of training text (txt, md, jsonl, csv, parquet, arrow; patterns too), with `held_out`.
        held_out: files of text to evaluate on, which share no document with `text`.
        processes: ranks on this machine, which share the model by ZeRO-3. None: the default of the settings, one.
        settings: any other, a dictionary a group, as in `recover={"tokens": 1_000_000}`; a string chooses a file of
            conf/, as in `engine="gpu"` or `experiment="llama7b_50pct"`.

    Raises:
        ValueError: the request is wrong: one line.
        RuntimeError: the work failed: one line; the same call goes on from the last finished stage.
    """
    folder = Path(output_dir)
    require("text", text, (text is None) == (held_out is None), "text and held_out are given together")
    require("mode", settings.get("mode", "prune"), settings.get("mode", "prune") == "prune", "it must be prune")
    asked = _merged(settings, {"model": {"path": str(model)}})
    if remove_fraction is not None:
        asked = _merged(asked, {"prune": {"remove_fraction": remove_fraction}})
    choices = []
    if text is not None and held_out is not None:
        choices.append("data=local")
        files = {"train": {"files": list(map(str, text))}, "evaluation": {"files": list(map(str, held_out))}}
        asked = _merged(asked, {"data": files})
    if processes is not None:
        choices.append("launch=local")
        asked = _merged(asked, {"launch": {"processes": processes}})
    asked = {"name": folder.name} | asked | {"output_dir": str(folder)}
    choices += _waits(asked)
    code, said = _run([*choices, *overrides_of(asked)])
    recover = asked.get("recover")
    if isinstance(recover, Mapping) and recover.get("variant") is not None:
        folder = folder / VARIANTS / recover["variant"]
    if code == DONE:
        return Result(output_dir=folder, export=folder / "export", summary=read_json(folder / "result.json"))
    reasons = [line.removeprefix(ERROR) for line in said if line.startswith(ERROR)]
    reason = (reasons or [f"the job ended with exit code {code}"])[-1]
    raise Refusal(reason) if code == REFUSED else Failure(reason)


def _waits(settings: Mapping[str, Any]) -> list[str]:
    """Return what makes the command wait for its job, which launch=slurm does not by itself.

    Raises:
        ValueError: it is not to wait; there would be no result.
    """
    launch = settings.get("launch", {})
    if isinstance(launch, Mapping):
        waits = launch.get("wait", True)
        require("launch.wait", waits, waits, "it must be true: the result is awaited")
        return []
    return ["launch.wait=true"] if launch == "slurm" else []


def overrides_of(settings: Mapping[str, Any], group: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield settings as overrides of the command line.

    Args:
        group: the names of the dictionaries that these are in.
    """
    for key, value in settings.items():
        path = (*group, key)
        if isinstance(value, Mapping) and ".".join(path) in _dictionaries():
            yield f"++{'.'.join(path)}={_literal(value)}"  # Hydra knows none of its keys
        elif isinstance(value, Mapping):
            yield from overrides_of(value, path)
        elif path == ("experiment",):
            yield f"+experiment={quoted(value)}"
        elif isinstance(value, str) and conf_folder().joinpath(*path).is_dir():
            yield f"{'/'.join(path)}={quoted(value)}"
        else:
            yield f"{'.'.join(path)}={_literal(value)}"


@cache
def _dictionaries() -> frozenset[str]:
    """Return the settings whose keys the user chooses."""
    return frozenset(name for name, _, hint in all_fields(RunConfig) if is_dictionary(hint))


def _literal(value: Any) -> str:
    """Return the value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(key)}:{_literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_literal, value)) + "]"
    return quoted(str(value))


def _key(key: Any) -> str:
    """Return the key of a dictionary in Hydra's grammar, which has no quotes for it."""
    return re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", str(key))


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two dictionaries, and dictionaries within them; the second wins.

    Raises:
        ValueError: the first has a string, which chooses a file of conf/, where the second has a dictionary.
    """
    both = dict(first)
    for key, value in second.items():
        old = both.get(key)
        if isinstance(old, str) and isinstance(value, Mapping):
            raise ValueError(
                f"{key}={old!r} is not allowed: it must be a dictionary, since the call sets {list(value)}"
            )
        both[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _run(overrides: Sequence[str]) -> tuple[int, list[str]]:
    """Run the command to its end and print its output. Returns the exit code and the last lines."""
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "transact.run", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C reaches it once, passed on from here
    )
    said: deque[str] = deque(maxlen=LAST_LINES)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said.append(line.rstrip("\n"))
            print(line, end="", flush=True)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # it saves, and ends
        print(process.communicate()[0], end="", flush=True)
        raise
    return process.wait(), list(said)
