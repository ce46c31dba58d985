"""Finished files: what is recorded of them tells every damage, and a damaged JSON file is named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from transact.files import (
    DIGEST_BLOCK_BYTES,
    DamagedFile,
    copy_finished,
    damage_of,
    file_digest,
    read_json,
    verify_file,
    write_text,
)

CONTENT = bytes(range(256)) * 40


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": _flip,
    "cut off": lambda path: path.write_bytes(CONTENT[:-1]),
    "longer": lambda path: path.write_bytes(CONTENT + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": _become_folder,
    "other content of that length": lambda path: path.write_bytes(bytes(len(CONTENT))),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_is_seen_and_the_file_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "shard.safetensors"
    path.write_bytes(CONTENT)
    recorded = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    verify_file(path, recorded)
    DAMAGES[name](path)
    assert damage_of(path, recorded)
    with pytest.raises(DamagedFile, match=r"shard\.safetensors"):
        verify_file(path, recorded)


def test_the_digest_is_sha256_and_a_long_read_gives_signs_of_life(tmp_path: Path) -> None:
    path, signs = tmp_path / "long", []
    content = CONTENT * (2 * DIGEST_BLOCK_BYTES // len(CONTENT) + 1)
    path.write_bytes(content)
    assert file_digest(path, lambda: signs.append(1)) == hashlib.sha256(content).hexdigest()
    assert len(signs) >= 3


def test_a_second_name_that_is_given_twice_leaves_nothing_else(tmp_path: Path) -> None:
    """A job may be killed between taking a result over and recording that it has."""
    source, output = tmp_path / "made" / "model", tmp_path / "taken" / "model"
    write_text(source, "weights")
    for _ in range(2):
        copy_finished(source, output)
    assert [path.name for path in output.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"\0" * 9, b"[" * 100_000, b"1" * 10_000])
def test_json_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"run\.json' is not JSON"):
        read_json(path)
