"""Shards are the bytes that the safetensors library would write, though they never stand in memory as a whole."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.apart import Apart
from transact.models import shard_writer
from transact.models.shard_writer import DTYPE_NAMES, write_shard

NAMES = ["model.embed_tokens.weight", "a", "B", "é", "a.b", 'quo"te', "back\\slash", "line\nbreak", "漢", "z" * 70]


def some_tensors(seed: int) -> dict[str, torch.Tensor]:
    """Any names, dtypes and shapes: scalars, empty and large ones, views with strides."""
    draw = random.Random(seed)
    tensors = {}
    for name in draw.sample(NAMES, draw.randint(0, len(NAMES))):
        shape = [draw.choice([0, 1, 2, 3, 17]) for _ in range(draw.randint(0, 3))]
        values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 100
        tensor = values.to(draw.choice(list(DTYPE_NAMES)))
        tensors[name] = tensor.transpose(0, -1) if len(shape) > 1 and draw.random() < 0.5 else tensor
    return tensors


@pytest.mark.parametrize("buffer_bytes", [64, 1 << 10, 1 << 26])
def test_the_file_is_the_one_that_the_library_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    monkeypatch.setattr(shard_writer, "WRITE_BUFFER_BYTES", buffer_bytes)
    for seed in range(25):
        tensors = some_tensors(seed)
        written, expected = tmp_path / "written", tmp_path / "expected"
        save_file({name: each.contiguous() for name, each in tensors.items()}, expected, metadata={"format": "pt"})
        apart = {name: Apart(each) for name, each in tensors.items()}
        for given in (tensors, apart):
            recorded = write_shard(written, given, None)
            content = written.read_bytes()
            assert content == expected.read_bytes(), seed
            assert recorded == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_every_tensor_is_rounded_as_torch_rounds(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(999), "b": torch.randn(7, 11).double(), "c": torch.randn(5).half()}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        write_shard(tmp_path / "file", tensors, dtype, {"further": "words"})
        found = load_file(tmp_path / "file")
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == dtype
            assert (found[name] == tensor.to(dtype)).all()


def test_a_full_disk_is_an_error_of_the_system() -> None:
    """Whichever part of the write meets it: what a disk takes is not known before."""
    with pytest.raises(OSError, match="No space left on device"):
        write_shard(Path("/dev/full"), {"a": torch.zeros(1 << 20)}, None)
