"""Measure how much faster two processes tokenise a text than one, each on one core.

    python -m benchmarks.tokenizing
    python -m benchmarks.tokenizing --tokenizer FOLDER --files 'text/*.jsonl'

The text is the library of this Python, the tokenizer the demo parent's, unless others are named. Every process has one
thread; one process with as many threads as two have cores stands beside them. Also measured: how fast the text is read,
which every process does with all of it, so that it bounds what many processes gain. Beside the time on the clock stands
the processor time of the busiest process, to which other work on the machine adds little. All stores must have the same
bits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.workload import REPOSITORY, RESULTS, machine, write_result
from transact.config.inputs import TextConfig
from transact.data.text import documents
from transact.data.token_parts import Packing, batches
from transact.data.token_store import TokenStore
from transact.data.tokenising import Course, write_token_store
from transact.distributed.process import process_group
from transact.errors import leave
from transact.files import read_json, write_json
from transact.models.stock import load_tokenizer

TARGET = 1.7  # times, two processes on two cores
PROCESSES = 2
LENGTH = 2048  # tokens of a sequence
ALL = 10**9  # sequences
CASES = {"one_process": (1, 1), "two_threads": (1, PROCESSES), "two_processes": (PROCESSES, 1)}  # processes, threads


def text_of(arguments: argparse.Namespace) -> TextConfig:
    if arguments.files:
        return TextConfig(source="files", files=arguments.files)
    return TextConfig(source="python_stdlib")


def work(arguments: argparse.Namespace) -> None:
    """Tokenise as one rank; rank 0 writes the seconds and the store's digest."""
    tokenizer, packing = load_tokenizer(arguments.tokenizer), Packing(sequence_length=LENGTH, max_sequences=ALL)
    text = (each for each in islice(documents(text_of(arguments), "data.train"), arguments.documents))
    with process_group("cpu", timeout_minutes=10) as group:
        folder = arguments.work / "store"
        begin, used = time.perf_counter(), time.process_time()
        write_token_store(folder, text, tokenizer, packing, course=Course(workers=group))
        group.barrier()
        seconds, busiest = time.perf_counter() - begin, group.maxima(time.process_time() - used)[0]
        if group.is_main:
            store = TokenStore(folder)
            tokens = store.num_sequences * store.sequence_length
            end = {"seconds": seconds, "processor_seconds": busiest, "tokens": tokens, "sha256": store.sha256}
            write_json(arguments.work / "end.json", end)


def measure(processes: int, threads: int) -> dict[str, Any]:
    """Start ranks with this command's arguments and return what they measured."""
    with tempfile.TemporaryDirectory(prefix="transact-tokenizing-") as folder:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launcher, "-m", "benchmarks.tokenizing", *sys.argv[1:], "--work", folder]
        variables = {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        subprocess.run(command, env=os.environ | variables, check=True)
        found: dict[str, Any] = read_json(Path(folder, "end.json"))
        return found


def reading(arguments: argparse.Namespace) -> tuple[int, float]:
    """Return the characters of the text, and the seconds to read it without tokenising."""
    begin = time.perf_counter()
    text = islice(documents(text_of(arguments), "data.train"), arguments.documents)
    characters = sum(len(piece.text) for batch in batches(text, ()) for piece in batch.pieces)
    return characters, time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizing", description=__doc__)
    parser.add_argument("--tokenizer", type=Path, default=REPOSITORY / "transact" / "assets" / "demo_parent")
    parser.add_argument("--files", nargs="*", default=[])
    parser.add_argument("--documents", type=int, help="how many of the text (default: all)")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "tokenizing.json")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments)
        return 0
    characters, read_seconds = reading(arguments)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    for _ in range(arguments.repetitions):  # in turn, so that a busy machine slows all of them
        for name, case in CASES.items():
            found[name].append(measure(*case))
    ends = [each for turns in found.values() for each in turns]
    assert len({each["sha256"] for each in ends}) == 1, "the stores differ"
    # The quickest of each: whatever else the machine does makes a turn slower.
    seconds, processor = (
        {name: min(each[clock] for each in turns) for name, turns in found.items()}
        for clock in ("seconds", "processor_seconds")
    )
    speed_up = seconds["one_process"] / seconds["two_processes"]
    by_processor = processor["one_process"] / processor["two_processes"]
    result = {
        "text": arguments.files or "python_stdlib",
        "tokenizer": arguments.tokenizer.name,
        "characters": characters,
        "tokens": ends[0]["tokens"],
        "seconds": seconds,
        "speed_up": speed_up,
        "processor_seconds": processor,
        "speed_up_by_processor_time": by_processor,
        "target": TARGET,
        "tokens_per_second": {name: ends[0]["tokens"] / each for name, each in seconds.items()},
        "reading_seconds": read_seconds,
        "repetitions": found,
        **machine(torch.device("cpu")),
    }
    for name, each in seconds.items():
        print(f"{name:14} {each:7.2f} s {ends[0]['tokens'] / each:12,.0f} tokens/s", flush=True)
    print(
        f"two processes are {speed_up:.2f} times as fast as one (target {TARGET}), {by_processor:.2f} times by the "
        f"processor time of the busiest; reading alone: {read_seconds:.2f} s"
    )
    write_result(arguments.output, result)
    return 0


if __name__ == "__main__":
    leave(main())
