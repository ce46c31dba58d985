"""The collectives of a process group: each tells the watchdog before and after, and each is one of a closed list."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as distributed

from tests.support.commands import REPOSITORY
from transact.distributed import process
from transact.distributed.process import ProcessGroup, process_group
from transact.distributed.watchdog import Watchdog

# Method -> arguments. A new collective is one more entry, or the first test fails.
CALLS: dict[str, tuple[Any, ...]] = {
    "barrier": (),
    "sum": (torch.zeros(1),),
    "sum_to": (0, torch.zeros(1)),
    "maxima": (1.0, 2.0),
    "broadcast": ("x",),
    "any": (True, False),
    "gather": ("x",),
    "everywhere": (lambda: 1,),
    "on_main": (lambda: 1,),
    "on_all": (lambda: 1,),
    "stop_if_asked": (),
    "turn": (),
}
# `stop` raises; the rest exchange nothing
OTHERS = {"stop", "shared_out", "turns", "is_main", "is_asked_to_stop", "board"}
FIELDS = set(ProcessGroup.__dataclass_fields__)


def test_every_collective_is_listed_here() -> None:
    public = {name for name, _ in inspect.getmembers(ProcessGroup) if not name.startswith("_")}
    assert public - FIELDS == CALLS.keys() | OTHERS


def test_torch_is_called_in_one_place() -> None:
    """Whoever calls a collective of torch.distributed elsewhere tells the watchdog nothing."""
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(inspect.getsource(process)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "distributed"
    }
    assert called == {"init_process_group", "destroy_process_group"}
    importers = {
        path.name
        for path in (REPOSITORY / "transact").rglob("*.py")
        if re.search(r"^\s*(from torch\.distributed|import torch\.distributed)", path.read_text(), re.MULTILINE)
    }
    assert importers == {"process.py", "rendezvous.py"}  # the second takes stores alone


def test_every_collective_tells_the_watchdog_before_and_after() -> None:
    told: list[str] = []

    def noted(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            told.append("collective")
            return collective(*given, **named)

        return call

    with process_group("cpu", 1) as group, ExitStack() as patched:
        for name in ("all_reduce", "reduce", "broadcast_object_list", "all_gather_object"):
            patched.enter_context(patch.object(distributed, name, noted(getattr(distributed, name))))
        patched.enter_context(patch.object(Watchdog, "progress", lambda self: told.append("progress")))
        for name, arguments in CALLS.items():
            told.clear()
            getattr(group, name)(*arguments)
            if name in ("on_main", "on_all"):  # while a rank works in a thread, that work is what counts there
                assert told[0] == "collective"
                told[:] = told[told.index("progress") :]
            assert "collective" in told and told[0] == told[-1] == "progress", f"{name}: {told}"
