"""Files of tokens, written by hand from the definitions of their formats."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

CODES = {"B": 1, "h": 3, "i": 4, "q": 5, "H": 8}  # of Megatron-LM's types, by the letters of `struct`


def write_indexed_dataset(
    prefix: Path, sequences: Sequence[Sequence[int]], *, documents: Sequence[int] | None = None, letter: str = "i"
) -> Path:
    """Write X.bin and X.idx of Megatron-LM, and return X.

    documents: number of each document's first sequence, then that of all sequences. None: each is one sequence.
    """
    size, places = struct.calcsize(letter), [0]
    for each in sequences:
        places.append(places[-1] + len(each) * size)
    documents = range(len(sequences) + 1) if documents is None else documents
    data = b"".join(struct.pack(f"<{len(each)}{letter}", *each) for each in sequences)
    index = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1) + struct.pack("<B", CODES[letter])
    index += struct.pack("<QQ", len(sequences), len(documents))
    index += struct.pack(f"<{len(sequences)}i", *map(len, sequences))
    index += struct.pack(f"<{len(sequences)}q", *places[:-1])
    index += struct.pack(f"<{len(documents)}q", *documents)
    prefix.with_name(f"{prefix.name}.bin").write_bytes(data)
    prefix.with_name(f"{prefix.name}.idx").write_bytes(index)
    return prefix
