"""Files of tokens: what their formats say is read, and what is no such file is refused in one line."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.support.tiny import train_tokenizer
from tests.support.token_files import write_indexed_dataset
from transact.config.inputs import TextConfig
from transact.data.token_parts import Packing
from transact.data.token_store import INDEX_NAME, write_index
from transact.data.tokenised_files import token_files
from transact.data.tokenising import write_token_store
from transact.files import read_json

SEQUENCES = [[5, 6, 7], [8], [], [9, 10, 300]]


def opened(path: object, tokenizer: str | None = "made/by") -> Any:
    (found,) = token_files(TextConfig(source="tokens", files=[str(path)], tokenizer=tokenizer), "data.train")
    return found


@pytest.mark.parametrize("letter", ["h", "i", "q", "H"])
@pytest.mark.parametrize("suffix", ["", ".bin", ".idx"])
def test_an_indexed_dataset_is_read_as_megatron_defines_it(letter: str, suffix: str, tmp_path: Path) -> None:
    """Against bytes that are packed by hand, with documents of several sequences, of one, and of none."""
    prefix = write_indexed_dataset(tmp_path / "a.v1_text", SEQUENCES, documents=[0, 2, 2, 4], letter=letter)
    found = opened(f"{prefix}{suffix}")
    assert found.tokens.tolist() == [5, 6, 7, 8, 9, 10, 300]
    assert found.ends().tolist() == [4, 4, 7]
    assert [found.path.name, found.index.name] == ["a.v1_text.bin", "a.v1_text.idx"]


def test_a_pattern_names_each_dataset_once(tmp_path: Path) -> None:
    for name in "ba":
        write_indexed_dataset(tmp_path / name, SEQUENCES)
    found = token_files(TextConfig(source="tokens", files=[f"{tmp_path}/*"], tokenizer="made/by"), "data.train")
    assert [each.path.name for each in found] == ["a.bin", "b.bin"]


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64", ">u4"])
def test_rows_of_an_array_are_read_one_behind_the_other(dtype: str, tmp_path: Path) -> None:
    numpy.save(tmp_path / "a.npy", numpy.array([[1, 2, 3], [4, 5, 6]], dtype=dtype))
    found = opened(tmp_path / "a.npy")
    assert (found.tokens.tolist(), found.row_length) == ([1, 2, 3, 4, 5, 6], 3)


def index_with(place: int, letter: str, value: int) -> Callable[[Path], Path]:
    """Change a number of an index."""

    def write(folder: Path) -> Path:
        path = folder / "x.idx"
        content = bytearray(path.read_bytes())
        struct.pack_into(f"<{letter}", content, place, value)
        path.write_bytes(content)
        return folder / "x"

    return write


def array(values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        numpy.save(folder / "y.npy", values, allow_pickle=True)
        return folder / "y.npy"

    return write


def without(name: str) -> Callable[[Path], Path]:
    def remove(folder: Path) -> Path:
        (folder / name).unlink()
        return folder / "x"

    return remove


def holding(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


LENGTHS = 9 + 8 + 1 + 8 + 8  # bytes before them
WRONG: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    "nothing there": (lambda folder: folder / "gone*", "names no file"),
    "on the network": (lambda folder: "s3://bucket/x.bin", "is remote; tokens are mapped into memory"),
    "no index": (without("x.idx"), "there is no '.*x.idx'"),
    "no tokens": (without("x.bin"), "there is no '.*x.bin'"),
    "magic": (holding("x.idx", b"MMIDXID" + bytes(100)), "no index of Megatron-LM"),
    "half a header": (holding("x.idx", b"MMIDIDX\0\0"), "no index of Megatron-LM"),
    "version": (index_with(9, "Q", 2), "is of version 2, supported: 1"),
    "floats": (index_with(17, "B", 6), "are of type 6"),
    "cut short": (index_with(18, "Q", 2**60), "bytes, by its header"),
    "lengths": (index_with(LENGTHS, "i", 2), "damaged"),
    "negative": (index_with(LENGTHS + 3 * 4, "i", -1), "damaged"),
    "documents": (index_with(LENGTHS + 4 * 12 + 8, "q", 9), "damaged"),
    "tokens cut short": (holding("x.bin", bytes(8)), "x.bin' has 8 bytes, by its .idx 28"),
    "array of floats": (array([0.5]), "holds float64, not integers"),
    "array of objects": (array(numpy.array([{}, []], dtype=object)), "no array that can be read"),
    "three dimensions": (array([[[1]]]), "has 3 dimensions, allowed are 1 and 2"),
    "by columns": (array(numpy.asfortranarray([[1, 2], [3, 4]])), "by columns"),
    "empty array": (array(numpy.empty(0, dtype=numpy.int32)), "is empty"),
    "no array": (holding("y.npy", b"text"), "no array that can be read"),
    "text": (holding("y.txt", b"text"), "is no .bin with its .idx, no .npy and no token store"),
    "folder": (lambda folder: folder, "no finished token store"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    write_indexed_dataset(tmp_path / "x", SEQUENCES)
    make, words = WRONG[case]
    with pytest.raises(ValueError, match=f"data.train.files: .*{words}") as caught:
        opened(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_files_that_do_not_say_who_made_them_need_the_setting(tmp_path: Path) -> None:
    write_indexed_dataset(tmp_path / "x", SEQUENCES)
    with pytest.raises(ValueError, match=r"data.train.tokenizer=null is not allowed: .*x.bin"):
        opened(tmp_path / "x", tokenizer=None)


def test_a_store_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("import os\n" * 50)
    packing = Packing(sequence_length=8, max_sequences=10)
    write_token_store(tmp_path / "s", [text.read_text()], train_tokenizer(text), packing)
    assert len(opened(tmp_path / "s", tokenizer=None).tokens) == 80
    index = read_json(tmp_path / "s" / INDEX_NAME)
    write_index(tmp_path / "s", {name: value for name, value in index.items() if name not in ("tokenizer", "digest")})
    with pytest.raises(ValueError, match="is of an earlier version and does not say which tokenizer made it"):
        opened(tmp_path / "s")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "tokens"}, "name at least one file"),
        ({"messages_field": "turns"}, "has no conversations"),
        ({"loss": "answers"}, "text has no answers"),
        ({"filter": "a.py:keep"}, "it is given text"),
        ({"text_template": "{title}"}, "has no rows"),
        ({"source": "files"}, "alone says which tokenizer"),
    ],
)
def test_settings_that_have_no_meaning_for_tokens_are_refused(settings: dict[str, Any], words: str) -> None:
    files = [] if settings == {"source": "tokens"} else ["a.npy"]
    with pytest.raises(ValueError, match=words):
        TextConfig(**({"source": "tokens", "files": files, "tokenizer": "made/by"} | settings))
