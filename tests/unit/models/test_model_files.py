"""Files of a model folder that somebody else made: links stay inside, JSON is what it should be, headers fit."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from transact.engine.model_folder import copy_companions
from transact.export.model_card import copy_licence, read_licence
from transact.models.model_files import check_names, own_file, read_header, read_object, stored_dtype, stored_tensors


def cached_snapshot(folder: Path) -> Path:
    """A repository as huggingface_hub caches it: names are links to blobs."""
    blobs, snapshot = folder / "models--a--b" / "blobs", folder / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1234").write_text("terms")
    (snapshot / "LICENSE").symlink_to("../../blobs/1234")
    return snapshot


def test_a_link_into_the_hub_cache_or_the_folder_is_a_file_of_it(tmp_path: Path) -> None:
    snapshot = cached_snapshot(tmp_path)
    (snapshot / "NOTICE").symlink_to("LICENSE")
    through = tmp_path / "through"
    through.symlink_to(snapshot)
    for folder in (snapshot, through):
        check_names(folder)
        assert read_licence(folder).files == ("LICENSE", "NOTICE")
    copy_licence(read_licence(through), through, tmp_path)
    assert (tmp_path / "NOTICE").read_text() == "terms"


@pytest.mark.parametrize("name", ["LICENSE", "config.json", "model.safetensors", "README.md", "chat_template.jinja"])
@pytest.mark.parametrize("target", ["/etc/hostname", "../secret", "../../blobs-not/1234", "../../../other/blobs/1"])
def test_a_link_out_of_the_folder_is_refused_and_never_copied(tmp_path: Path, name: str, target: str) -> None:
    snapshot = cached_snapshot(tmp_path)
    (snapshot / name).unlink(missing_ok=True)
    (snapshot / name).symlink_to(target)
    goal = Path(snapshot / target)
    if not goal.is_absolute() or not goal.exists():
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.write_text("secret")
    with pytest.raises(ValueError, match="a link out of the model folder"):
        check_names(snapshot)
    copied = tmp_path / "copied"
    copied.mkdir()
    with pytest.raises(ValueError, match="a link out"):
        copy_companions(snapshot, copied)
        copy_licence(read_licence(snapshot), snapshot, copied)
        own_file(snapshot, name)
    assert not any(path.read_text() == "secret" for path in copied.iterdir())


def test_a_name_that_cannot_be_written_down(tmp_path: Path) -> None:
    (tmp_path / "LICENSE\udcff").write_text("terms")
    with pytest.raises(ValueError, match=r"'LICENSE\\udcff' holds characters"):
        check_names(tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "not JSON"),
        (b"[]", "holds list, not an object"),
        (b"3", "holds int"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 3_000_000, "nested too deeply"),
    ],
    ids=lambda value: str(value[:12]) if isinstance(value, bytes) else None,
)
def test_json_that_is_none(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=named):
        read_object(path)


def test_json_of_a_size_that_no_honest_file_has(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"[")
    os.truncate(path, 200_000_000)
    with pytest.raises(ValueError, match="200000000 bytes"):
        read_object(path)


Header = dict[str, Any]


def write_shard(path: Path, header: Header | str, data: bytes) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "length", "named"),
    [
        ({"a": entry(0, 16), "b": entry(8, 24)}, 24, "'b' overlaps"),
        ({"a": entry(0, 16), "b": entry(0, 16)}, 16, "'b' overlaps"),
        ({"a": entry(0, 16), "b": entry(24, 40)}, 40, "'b' leaves a hole"),
        ({"a": entry(8, 24)}, 24, "'a' leaves a hole"),
        ({"a": entry(0, 16, [5])}, 16, r"'a' of shape \[5\] needs 20 bytes"),
        ({"a": entry(0, 16, [2, 2], "F64")}, 16, "needs 32 bytes"),
        ({"a": entry(0, 16, [10**30])}, 16, "needs"),
        ({"a": entry(16, 0)}, 0, "not safetensors"),
        ({"a": entry(0, 16, [-4])}, 16, "not safetensors"),
        ({"a": entry(0, 16, [4.0])}, 16, "not safetensors"),
        ({"a": entry(0, 16) | {"data_offsets": [0, 8, 16]}}, 16, "not safetensors"),
        ({"a": entry(0, 16) | {"data_offsets": "x"}}, 16, "not safetensors"),
        ({"a": 5}, 0, "not safetensors"),
        ({"a": entry(0, 16), "b": entry(16, 32)}, 24, "truncated"),
        ('{"a": %s, "a": %s}' % ((json.dumps(entry(0, 16)),) * 2), 16, "holds 'a' twice"),
        ("[" * 100_000, 0, "not safetensors"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, header: Header | str, length: int, named: str) -> None:
    path = write_shard(tmp_path / "model.safetensors", header, bytes(length))
    with pytest.raises(ValueError, match=named):
        read_header(path)
    if '"a": ' not in str(header):  # of a name that stands twice safetensors takes the last
        with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
            pass


def test_the_order_of_names_in_a_header_is_free(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "model.safetensors", {"b": entry(16, 32), "a": entry(0, 16)}, bytes(32))
    assert list(read_header(path)) == ["a", "b"]
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["a", "b"]


@pytest.fixture
def two_shards(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """A folder with tensors a and b in a shard of their own, and any index."""

    def write(weight_map: dict[str, str]) -> Path:
        for name in "ab":
            save_file({name: torch.zeros(2)}, tmp_path / f"{name}.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("weight_map", "named"),
    [
        ({"a": "a.safetensors", "b": "a.safetensors"}, "its shard 'a.safetensors' does not hold it"),
        ({"a": "b.safetensors", "b": "a.safetensors"}, "but '.*' holds it"),
        ({"a": "a.safetensors", "c": "b.safetensors"}, "lists 'c', and its shard"),
        ({"b": "a.safetensors", "a": "b.safetensors", "c": "b.safetensors"}, "lists 'b' in 'a"),
        ({}, "not a complete index"),
    ],
)
def test_an_index_that_does_not_fit(
    two_shards: Callable[[dict[str, str]], Path], weight_map: dict[str, str], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        stored_tensors(two_shards(weight_map))


def test_a_tensor_in_two_shards(two_shards: Callable[[dict[str, str]], Path]) -> None:
    folder = two_shards({"a": "a.safetensors", "b": "b.safetensors"})
    assert sorted(stored_tensors(folder)) == ["a", "b"]
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, folder / "b.safetensors")
    with pytest.raises(ValueError, match=r"'a' is stored twice, in 'a.safetensors' and in 'b.safetensors'"):
        stored_tensors(folder)


@pytest.mark.parametrize(
    ("config", "counts_as"),
    [
        ({"dtype": "float32"}, "float32"),
        ({"dtype": "float64"}, "float32"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, "bfloat16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float32"}, "float32"),
        ({}, "bfloat16"),
        ({"dtype": None}, "bfloat16"),
    ],
)
def test_one_rule_for_the_dtype(tmp_path: Path, config: dict[str, Any], counts_as: str) -> None:
    """What config.json says; where it is silent, what most of the weights are stored in."""
    tensors = {"norm": torch.zeros(4), "matrix": torch.zeros(8, 8, dtype=torch.float16)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_dtype(config, tmp_path) == counts_as


@pytest.mark.parametrize("dtype", ["int8", "float", 32, ["float32"], True])
def test_a_dtype_that_is_none(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match="supported: float64, float32, float16, bfloat16"):
        stored_dtype({"dtype": dtype}, tmp_path)


def test_nothing_known_of_the_dtype(tmp_path: Path) -> None:
    assert stored_dtype({}, tmp_path) == "float32"
