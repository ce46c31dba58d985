"""Check and measure everything on a GPU, in three parts of at most nine minutes.

    python -m benchmarks.gpu_check --part works
    torchrun --nproc-per-node 8 -m benchmarks.gpu_check --part fast
    python -m benchmarks.gpu_check --processes 8 --part chain

"works": versions, ranks, every ZeRO stage, and the same figures as on a CPU and with plain PyTorch. "fast": training of
wide layers, and the choice of channels, beside the estimate. "chain": a run of two rounds that is stopped, killed and
goes on. Without --part all three, one after the other. A section that fails is told in a line, and the next one begins;
one that does not fit into the time any more is skipped, and said to be; one that takes far longer ends the call. What
was measured is in the results file after every section. Ends with code 1 where a section failed, and with 0 where there
is no GPU.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from threading import Timer
from typing import Any

import torch

from benchmarks.gpu_chain import CHAIN, kill_attempts
from benchmarks.gpu_fast import FAST
from benchmarks.gpu_place import SIZES, CheckFailed, Place, Section
from benchmarks.gpu_works import WORKS
from benchmarks.workload import RESULTS, machine, relaunch, working_folder
from transact.config.accelerators import reported_as
from transact.distributed.environment import environment_rank
from transact.distributed.process import ProcessGroup, process_group
from transact.errors import DONE, FAILED, Stopped, leave, one_line
from transact.files import read_json, write_json

PARTS: dict[str, tuple[Section, ...]] = {"works": WORKS, "fast": FAST, "chain": CHAIN}
BUDGET_SECONDS = 500.0  # of a part, which a call of nine minutes holds with the start of Python and the writing
OVERRUN_SECONDS = 35.0  # after which the call ends, whatever a section is doing
OK, BROKEN, SKIPPED = "ok", "failed", "skipped"


def result_path(group: ProcessGroup) -> Path:
    """Return the results file of this kind of machine: gpu_h100.json, with eight of them gpu_8x_h100.json."""
    name = torch.cuda.get_device_name(group.device)
    known = reported_as(name)
    count = f"{group.world_size}x_" if group.world_size > 1 else ""
    return RESULTS / f"gpu_{count}{known.name if known else re.sub(r'[^a-z0-9]+', '_', name.lower())}.json"


class Record:
    """The results file: one entry a part, whose sections are added as they end. Other parts in it stay."""

    def __init__(self, path: Path, place: Place, size: str) -> None:
        self._path = path
        about = {"device": machine(place.device)["device"], "world_size": place.group.world_size, "size": size}
        before = read_json(path) if path.is_file() else {}
        is_same = all(before.get(name) == value for name, value in about.items())
        self.parts: dict[str, Any] = before["parts"] if is_same else {}
        self._about = about | {"sizes": asdict(place.size)}

    def begin(self, part: str, place: Place) -> None:
        self.parts[part] = {"environment": machine(place.device), "sections": {}}

    def add(self, part: str, section: str, entry: dict[str, Any]) -> None:
        self.parts[part]["sections"][section] = entry
        write_json(self._path, self._about | {"parts": self.parts})


def run_part(part: str, place: Place, record: Record | None, budget: float) -> list[str]:
    """Run the sections of a part and return how each of them ended (collective). record: of rank 0."""
    began, states = time.monotonic(), []
    if record is not None:
        record.begin(part, place)
    at_work: list[str] = []
    limit = Timer(budget + OVERRUN_SECONDS, _out_of_time, (part, at_work, place, record))
    limit.daemon = True
    limit.start()
    for section in PARTS[part]:
        at_work[:] = [section.name]
        # A size of seconds is no measure of what a section needs.
        needed = section.seconds if place.size == SIZES["full"] else 0.0
        left = place.group.broadcast(budget - (time.monotonic() - began))
        begin = time.monotonic()
        entry: dict[str, Any]
        if needed > left:
            entry = {"state": SKIPPED, "said": f"{needed:.0f} s would be needed, {max(left, 0):.0f} s are left"}
        else:
            entry = _ended(section, place)
        entry["seconds"] = time.monotonic() - begin
        states.append(entry["state"])
        if record is not None:
            said = entry["said"]
            print(f"{part}/{section.name:18} {entry['state']:8} {entry['seconds']:6.1f} s  {said}", flush=True)
            record.add(part, section.name, entry)
    limit.cancel()
    return states


def _out_of_time(part: str, at_work: list[str], place: Place, record: Record | None) -> None:
    """End this process, and what a section has started: a call that is stopped from outside would say nothing."""
    if record is not None:
        said = "it took longer than the call may; what comes after it was not run"
        print(f"{part}/{at_work[0]:18} {BROKEN:8} {said}", flush=True)
        record.add(part, at_work[0], {"state": BROKEN, "said": said, "figures": {}})
        kill_attempts(place.folder)
        shutil.rmtree(place.folder, ignore_errors=True)
    os._exit(FAILED)


def _ended(section: Section, place: Place) -> dict[str, Any]:
    """Run a section and return its figures, or why it failed; free what it leaves."""
    try:
        figures, reason = section.run(place), None
    except Stopped:
        raise
    except Exception as error:  # noqa: BLE001 - the next section begins, whatever ended this one
        figures, reason = {}, str(error) if isinstance(error, CheckFailed) else one_line(error)
    gc.collect()
    if place.is_cuda:
        torch.cuda.empty_cache()
    reasons = [each for each in place.group.gather(reason) if each is not None]
    if reasons:
        return {"state": BROKEN, "said": reasons[0], "figures": figures}
    return {"state": OK, "said": figures.pop("said"), "figures": figures}


def check(arguments: argparse.Namespace, group: ProcessGroup, folder: Path) -> int:
    """Run the parts that are asked for and return the exit code (collective)."""
    place = Place(group=group, size=SIZES[arguments.size], folder=folder)
    path = arguments.output or result_path(group)
    record = Record(path, place, arguments.size) if group.is_main else None
    states = []
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        states += run_part(part, place, record, arguments.budget)
    if group.is_main:
        counts = ", ".join(f"{states.count(state)} {state}" for state in (OK, BROKEN, SKIPPED))
        print(f"gpu-check: {counts}; result: {path}", flush=True)
    return FAILED if BROKEN in states else DONE


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--processes", type=int, default=1, help="ranks to start on this machine")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds of a part")
    parser.add_argument("--folder", type=Path, help="where to put 40 GB for the time of the check (default: TMPDIR)")
    parser.add_argument("--output", type=Path, help="results file (default: benchmarks/results/gpu_NAME.json)")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and arguments.output is None:
        parser.error("--device cpu needs --output: benchmarks/results is for GPUs")
    if arguments.size != "full" and arguments.output is None:
        parser.error(f"--size {arguments.size} needs --output: benchmarks/results is for the full size")
    return arguments


def main() -> int:
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        if environment_rank() == 0:
            print("gpu-check: there is no GPU here; nothing was checked", flush=True)
        return DONE
    code = relaunch("benchmarks.gpu_check", arguments.processes)
    if code is not None:
        return code
    with (
        process_group(arguments.device, timeout_minutes=10) as group,
        working_folder(group, arguments.folder) as folder,
    ):
        return check(arguments, group, folder)


if __name__ == "__main__":
    leave(main())
