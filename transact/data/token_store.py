"""Text as tokens on disk: packed sequences of one length, written once, read by position."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy
import torch

from transact.data.document_marks import DocumentMarks, document_marks
from transact.data.token_parts import PART_NAME
from transact.files import TEMPORARY_SUFFIX, damage_of, file_digest, read_json, write_json

FORMAT_VERSION = 4
INDEX_NAME = "index.json"
TOKENS_NAME = "tokens.bin"
COUNTED_NAME = "counted.bin"  # a byte for each token, 1 where it counts for the loss; only where not all do
STARTS_NAME = "starts.bin"  # a byte for each token, 1 at the first of a document; only with data.packing=documents
DOCUMENTS_NAME = "documents.bin"  # a hash of every document in it, sorted
FILE_NAMES = (INDEX_NAME, TOKENS_NAME, COUNTED_NAME, STARTS_NAME, DOCUMENTS_NAME, INDEX_NAME + TEMPORARY_SUFFIX)


class TokenStore:
    """A finished store. Sequences are consecutive pieces of the text; documents are separated by marks."""

    def __init__(self, folder: Path) -> None:
        self.index = read_index(folder)
        self.folder = folder
        self.name = folder.name  # a digest of what it was made of
        self.num_sequences: int = self.index["num_sequences"]
        self.sequence_length: int = self.index["sequence_length"]
        self.is_whole_text: bool = self.index["is_whole_text"]
        self.largest_token: int = self.index["largest_token"]
        shape = (self.num_sequences, self.sequence_length)
        self._tokens = numpy.memmap(folder / TOKENS_NAME, dtype=self.index["dtype"], mode="r", shape=shape)
        self._counted, self._starts = (
            numpy.memmap(folder / name, dtype=numpy.bool_, mode="r", shape=shape)
            if name in self.index["files"]
            else None
            for name in (COUNTED_NAME, STARTS_NAME)
        )

    @property
    def sha256(self) -> str:
        """Digest of the tokens, where not all of them count for the loss, of which do, and of where documents begin."""
        files = self.index["files"]
        digests = [str(files[name]["sha256"]) for name in (TOKENS_NAME, COUNTED_NAME, STARTS_NAME) if name in files]
        return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def sequences(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the tokens at positions (sequences,): (sequences, sequence_length), int64."""
        return torch.from_numpy(self._tokens[positions.numpy()].astype(numpy.int64))

    def counted(self, positions: torch.Tensor) -> torch.Tensor | None:
        """Return which of these tokens count for the loss: (sequences, sequence_length) bool. None: all of them.

        Where tokens attend to their own document alone, nothing tells its first token, which does not count.
        """
        counted = None if self._counted is None else torch.from_numpy(self._counted[positions.numpy()])
        if self._starts is None:
            return counted
        within = torch.from_numpy(~self._starts[positions.numpy()])
        return within if counted is None else counted & within

    def position_ids(self, positions: torch.Tensor) -> torch.Tensor | None:
        """Return where each of these tokens stands in its document: (sequences, sequence_length) int64.

        It is 0 at the beginning of a sequence too. None: tokens attend to all of their sequence before them.
        """
        if self._starts is None:
            return None
        places = torch.arange(self.sequence_length)
        return places - (places * torch.from_numpy(self._starts[positions.numpy()])).cummax(dim=1).values

    def num_targets(self, positions: torch.Tensor) -> int:
        """Return how many tokens at positions are predicted and count; the first of a sequence is not predicted."""
        counted = self.counted(positions)
        every = len(positions) * (self.sequence_length - 1)
        return every if counted is None else int(counted[:, 1:].sum())

    def documents(self) -> numpy.ndarray:
        """Return the hashes of all documents that the store holds a part of: (documents,) uint64, ascending."""
        path = self.folder / DOCUMENTS_NAME
        # Mapped: those of a large training text take gigabytes, of which a search reads little.
        return numpy.memmap(path, numpy.uint64, mode="r") if path.stat().st_size else numpy.empty(0, numpy.uint64)

    def holds(self, documents: numpy.ndarray) -> numpy.ndarray:
        """Return for each hash of a document, (documents,) uint64, whether the store holds a part of it."""
        own = self.documents()
        places = numpy.searchsorted(own, documents)
        found = numpy.zeros(len(documents), dtype=bool)
        inside = places < len(own)
        found[inside] = own[places[inside]] == documents[inside]
        return found


def read_index(folder: Path) -> dict[str, Any]:
    """Return index.json of a store, whose files have the sizes that it says.

    Raises:
        ValueError: the index is not as it was written, or a file has another size.
        OSError: a file is missing.
    """
    index = read_json(folder / INDEX_NAME)
    if not isinstance(index, dict) or index.get("digest") != _index_digest(index):
        raise ValueError(f"{INDEX_NAME} is not what was written")
    for name, recorded in index["files"].items():
        size = (folder / name).stat().st_size
        if size != recorded["size"]:
            raise ValueError(f"{name} has {size} of {recorded['size']} bytes")
    return index


def store_damage(folder: Path, on_read: Callable[[], object] = lambda: None) -> str | None:
    """Return what is wrong with a store, in words, or None if every byte is as it was written.

    Reads all of it once.

    Args:
        on_read: as in `damage_of`.
    """
    try:
        index = read_index(folder)
    except (ValueError, OSError) as error:
        return str(error)
    for name, recorded in index["files"].items():
        problem = damage_of(folder / name, recorded, on_read)
        if problem is not None:
            return f"{name} {problem}"
    return None


def write_index(folder: Path, facts: dict[str, Any], names: Iterable[str] = (TOKENS_NAME, DOCUMENTS_NAME)) -> None:
    """Write index.json into a folder that holds the other files of a store, which have these names."""
    files = {name: {"size": (folder / name).stat().st_size, "sha256": file_digest(folder / name)} for name in names}
    index = facts | {"files": files}
    write_json(folder / INDEX_NAME, index | {"digest": _index_digest(index)})


def _index_digest(index: dict[str, Any]) -> str:
    facts = {name: value for name, value in index.items() if name != "digest"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def remove_store(folder: Path) -> None:
    """Remove a store, damaged or half-written, and nothing that is not one.

    Raises:
        ValueError: the folder is not a store, or holds something else.
    """
    if not os.path.lexists(folder):
        return
    check_is_store(folder)
    for entry in list(os.scandir(folder)):
        os.unlink(entry.path)
    folder.rmdir()


def check_is_store(folder: Path) -> None:
    """Raise ValueError if there is something else than a store, or what was finished of one."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        foreign = ["a link" if folder.is_symlink() else "a file"]
    else:
        foreign = [repr(each.name) for each in os.scandir(folder) if not _is_ours(each)]
    if foreign:
        raise ValueError(
            f"data.token_store: {str(folder)!r} is no token store: it is or holds {foreign[0]}; move it away"
        )


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is one of a store's files, or a link of that name: removing it leaves its target."""
    is_named_so = entry.name in FILE_NAMES or PART_NAME.fullmatch(entry.name) is not None
    return is_named_so and (entry.is_symlink() or entry.is_file())


def store_folder(root: Path, identity: dict[str, Any]) -> Path:
    """Return where the store of this text, tokenizer, length and size is, or will be."""
    text = json.dumps({"format": FORMAT_VERSION, **identity}, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:20]


def tokenizer_digest(tokenizer: Any, marks: DocumentMarks | None = None, *, is_chat: bool = False) -> str:
    """Return a digest of all that tokens depend on; marks of documents and chat template are not in tokenizer.json."""
    marks = marks or document_marks(tokenizer, "auto")
    chat = [tokenizer.chat_template, tokenizer.special_tokens_map] if is_chat else []  # which templates write
    added = json.dumps([marks.begin, marks.end, *chat], sort_keys=True, default=str)
    return hashlib.sha256((tokenizer.backend_tokenizer.to_str() + added).encode()).hexdigest()
