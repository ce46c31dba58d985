"""Measure what text costs: tokenising beside the tokenizer alone, batches beside a memory map, mixtures, opening.

    python -m benchmarks.data_speed

One process with one thread. Both sides of a ratio take turns on the same text or the same positions; what counts is the
median of neighbours. The large store is a sparse file: its size is real, its tokens are zeros.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import torch

from benchmarks.workload import REPOSITORY, RESULTS, machine, write_random_tokens, write_result
from transact.config.inputs import TextConfig
from transact.data.mixture import MixtureOrder, Source
from transact.data.order import SequenceOrder
from transact.data.text import documents
from transact.data.token_parts import Packing, batches
from transact.data.token_store import DOCUMENTS_NAME, TOKENS_NAME, TokenStore, write_index
from transact.data.tokenising import write_token_store
from transact.errors import leave
from transact.models.stock import load_tokenizer

LENGTH, BATCH, STEPS = 2048, 256, 100  # tokens, sequences, batches of one measurement
SEQUENCES = 50_000  # of the store that batches are read from
LARGE_TOKENS = 10**9
SOURCES = 4
TARGETS = {"tokenising": 0.9, "reading": 0.9, "mixture": 0.98}  # ours / the other, at least
MOST_OPENING_SECONDS = 1.0


def alternated(ours: Callable[[], object], other: Callable[[], object], repetitions: int) -> dict[str, Any]:
    """Return the seconds of both in every turn, and how fast ours is beside the other: the median of neighbours."""
    turns: dict[str, list[float]] = {"ours": [], "other": []}
    sides = [("ours", ours), ("other", other)]
    for repetition in range(repetitions):
        for name, work in sides if repetition % 2 else reversed(sides):  # the second finds warmer caches
            begin = time.process_time()  # one thread: other work on the machine counts less
            work()
            turns[name].append(time.process_time() - begin)
    ratios = [other / ours for ours, other in zip(turns["ours"], turns["other"], strict=True)]
    return {"speed": median(ratios), "seconds": turns}


def tokenising(tokenizer_folder: Path, count: int, repetitions: int) -> dict[str, Any]:
    """Compare a token store, from documents in memory to finished files, with `encode_batch_fast` alone."""
    tokenizer = load_tokenizer(tokenizer_folder)
    text = list(islice(documents(TextConfig(source="python_stdlib"), "data.train"), count))
    packing = Packing(sequence_length=LENGTH, max_sequences=10**9)
    pieces = [[piece.text for piece in batch.pieces] for batch in batches(iter(text), ())]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_token_store(Path(folder, "store"), iter(text), tokenizer, packing)

    def alone() -> None:
        for batch in pieces:
            tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)

    return alternated(ours, alone, repetitions) | {"characters": sum(map(len, text))}


def reading(folder: Path, repetitions: int) -> dict[str, Any]:
    """Compare batches in the order of training with the same positions read from a memory map of the tokens."""
    store, order = TokenStore(folder), SequenceOrder(num_sequences=SEQUENCES, num_reserved=64, seed=0)
    positions = [order.trainable(step * BATCH, BATCH).numpy() for step in range(STEPS)]
    mapped = numpy.memmap(folder / TOKENS_NAME, dtype=numpy.uint16, mode="r", shape=(SEQUENCES, LENGTH))

    def ours() -> None:
        for step in range(STEPS):
            store.sequences(order.trainable(step * BATCH, BATCH))

    def alone() -> None:
        for each in positions:
            torch.from_numpy(mapped[each].astype(numpy.int64))

    return alternated(ours, alone, repetitions) | {"tokens": STEPS * BATCH * LENGTH}


def mixture(folder: Path, repetitions: int) -> dict[str, Any]:
    """Compare batches of a mixture of several texts with those of one text of the same size."""
    store, each = TokenStore(folder), SEQUENCES // SOURCES
    one = SequenceOrder(num_sequences=SEQUENCES, num_reserved=64, seed=0)
    sources = [Source(num_sequences=each, weight=number + 1.0) for number in range(SOURCES)]
    mixed = MixtureOrder(sources, num_reserved=64, seed=0)

    def read(order: SequenceOrder | MixtureOrder) -> None:
        for step in range(STEPS):
            store.sequences(order.trainable(step * BATCH, BATCH))

    return alternated(lambda: read(mixed), lambda: read(one), repetitions) | {"tokens": STEPS * BATCH * LENGTH}


def opening(folder: Path) -> dict[str, Any]:
    """Return the seconds to open a store of 10^9 tokens and read a batch, and the memory that it took."""
    count = LARGE_TOKENS // LENGTH
    folder.mkdir()
    with (folder / TOKENS_NAME).open("wb") as file:
        file.truncate(2 * count * LENGTH)
    (folder / DOCUMENTS_NAME).touch()
    facts = {"num_sequences": count, "sequence_length": LENGTH, "dtype": "uint16", "is_whole_text": True}
    write_index(folder, facts | {"largest_token": 0, "documents": 0, "documents_left_out": 0})
    before, begin = _anonymous_bytes(), time.perf_counter()
    store, order = TokenStore(folder), SequenceOrder(num_sequences=count, num_reserved=64, seed=0)
    store.sequences(order.trainable(0, BATCH))
    seconds = time.perf_counter() - begin
    for step in range(1, STEPS):
        store.sequences(order.trainable(step * BATCH, BATCH))
    return {"seconds": seconds, "tokens": count * LENGTH, "memory_bytes": _anonymous_bytes() - before}


def _anonymous_bytes() -> int:
    """Return the memory of this process without pages of files, which the system takes back when it needs them."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_speed", description=__doc__)
    parser.add_argument("--tokenizer", type=Path, default=REPOSITORY / "transact" / "assets" / "demo_parent")
    parser.add_argument("--documents", type=int, default=400, help="of the library of this Python")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "data_speed.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="transact-data-") as work:
        folder = Path(work, "store")
        found = {"opening": opening(Path(work, "large"))}
        write_random_tokens(folder, num_sequences=SEQUENCES, sequence_length=LENGTH, vocab_size=50_000, seed=0)
        reading(folder, 1)  # so that the file is in memory for both
        found |= {"reading": reading(folder, arguments.repetitions), "mixture": mixture(folder, arguments.repetitions)}
        found |= {"tokenising": tokenising(arguments.tokenizer, arguments.documents, arguments.repetitions)}
    for name, target in TARGETS.items():
        print(f"{name:10} {found[name]['speed']:.3f} (at least {target})", flush=True)
    large = found["opening"]
    print(f"opening    {large['seconds']:.3f} s (below {MOST_OPENING_SECONDS}), {large['memory_bytes'] / 1e6:.0f} MB")
    write_result(arguments.output, found | {"targets": TARGETS, **machine(torch.device("cpu"))})
    return 0


if __name__ == "__main__":
    leave(main())
