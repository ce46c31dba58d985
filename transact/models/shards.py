"""The safetensors files of a model folder, judged by their headers: complete, in it, and of the right shapes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transact.files import read_json
from transact.geometry import Geometry
from transact.models.llama import expected_shapes

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
DTYPES = ("F32", "F16", "BF16", "F64")
# In names of rotary frequencies, which older versions of transformers stored with the weights, and which exports
# store for converters to see; they follow from config.json.
DERIVED = "rotary_emb.inv_freq"


def check_shards(folder: Path, geometry: Geometry) -> None:
    """Every weight of a LLaMA of these dimensions is there in full.

    Raises:
        ValueError: names the file or the tensor, and what to do.
    """
    where = f"model.path={str(folder)!r}"
    found: dict[str, Any] = {}
    for name in shard_names(folder):
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{where}: the shard {name!r} is missing")
        found |= read_header(path)
    for tensor, entry in found.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{where}: {tensor} is stored as {entry['dtype']}; supported: {', '.join(DTYPES)}")
    shapes = {name: tuple(entry["shape"]) for name, entry in found.items()}
    check_shapes(where, shapes, expected_shapes(geometry), is_tied=geometry.tied_embeddings)


def check_shapes(
    where: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, is_tied: bool
) -> None:
    """The tensors of a folder are exactly the weights that are expected.

    Raises:
        ValueError: names the first that is missing, too many or of another shape.
    """
    tied = {"lm_head.weight"} if is_tied else set()
    known = {name for name in found if DERIVED not in name}
    for problem, names in (
        ("lacks", expected.keys() - known),
        ("has the unknown tensor", known - expected.keys() - tied),
    ):
        if names:
            raise ValueError(
                f"{where}: {problem} {min(names)!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(f"{where}: {name} has shape {found[name]}, config.json says {shape}")


def shard_names(folder: Path) -> list[str]:
    """File names, as the index lists them.

    Raises:
        ValueError: there are none, or the index names a file outside the folder.
    """
    index = folder / INDEX_NAME
    if index.is_file():
        try:
            names = set(read_json(index)["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"model.path: {str(index)!r} is not a complete index") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"model.path: {str(index)!r} names {name!r}, which is no safetensors file beside it")
        return sorted(names)
    if (folder / SINGLE_NAME).is_file():
        return [SINGLE_NAME]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"model.path={str(folder)!r} holds only pickle files ({pickles[0]}), which can run code and are not read; "
            'if you trust it, convert it: python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer'
            f" as T; [X.from_pretrained('{folder}').save_pretrained('{folder}-safetensors') for X in (M, T)]\""
        )
    raise ValueError(f"model.path={str(folder)!r} holds no {SINGLE_NAME} and no {INDEX_NAME}")


def read_header(path: Path) -> dict[str, Any]:
    """Tensor name -> {"dtype", "shape", "data_offsets"}.

    Raises:
        ValueError: the file is not as long as its header says (a download that broke off), or is no safetensors.
    """
    size = path.stat().st_size
    broken = ValueError(f"model.path: the shard {str(path)!r} is truncated or is not safetensors ({size} bytes)")
    with path.open("rb") as file:
        prefix = file.read(HEADER_LENGTH_BYTES)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == HEADER_LENGTH_BYTES else 0
        if not 0 < length <= min(size, MAX_HEADER_BYTES):
            raise broken
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            complete = all(
                isinstance(entry["dtype"], str) and isinstance(entry["shape"], list) for entry in header.values()
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise broken from None
    if size != HEADER_LENGTH_BYTES + length + end or not complete:
        raise broken
    return dict(header)
