"""The files of a model folder: their names, the index, and what the headers of the shards say of each tensor."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transact.config.setting import shown
from transact.errors import Refusal
from transact.files import DamagedFile
from transact.geometry import Geometry
from transact.models.llama import expected_shapes

CONFIG = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
# What a model folder holds besides weights and config.json, where the model has it.
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    GENERATION_CONFIG,
)
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
DOWNLOADED = ("*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja", "README.md", *LICENCE_FILES)
SECOND_COPIES = ["consolidated*"]  # the same weights under their maker's own names

MAX_JSON_BYTES = 64_000_000  # a tokenizer.json of 256,000 words with its merges has 35 MB
MAX_CONFIG_BYTES = 4_000_000


def own_file(folder: Path, name: str) -> Path | None:
    """Return the path of a regular file of a model folder; None where there is none of this name.

    A link is followed where it leads to another file of the folder, or, as in the cache of the Hugging Face hub, to a
    blob of the same repository.

    Raises:
        ValueError: it is a link that leads elsewhere.
    """
    path = folder / name
    if not path.is_file():
        return None
    target, home = path.resolve(), folder.resolve()
    if target.is_relative_to(home):
        return path
    if home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent / "blobs"):
        return path
    raise ValueError(
        f"{str(path)!r} is a link out of the model folder (to {str(target)!r}), which is not followed: put the file "
        "itself there"
    )


def check_names(folder: Path) -> None:
    """Check that no file to read or copy is a link out of the folder, or has a name that cannot be printed.

    Raises:
        ValueError: names the first such file.
    """
    for name in sorted(path.name for path in folder.glob("*")):
        if not any(fnmatch(name, pattern) for pattern in DOWNLOADED):
            continue
        if not name.isprintable():
            raise ValueError(f"the file name {name!a} holds characters that cannot be printed: rename it")
        own_file(folder, name)


def licence_files(folder: Path) -> Iterator[Path]:
    """Yield the licence files of a folder, sorted by name.

    Raises:
        ValueError: as `own_file`.
    """
    for name in sorted(path.name for path in folder.glob("*")):
        if any(fnmatch(name, pattern) for pattern in LICENCE_FILES) and own_file(folder, name):
            yield folder / name


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file that others wrote.

    Raises:
        DamagedFile: it is longer than `limit` bytes, no JSON, or not an object.
    """
    size = path.stat().st_size
    if size > limit:
        raise DamagedFile(path, f"has {size} bytes, and no such file has more than {limit}")
    try:
        found = json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # also for invalid UTF-8, numbers too long, a million brackets
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DamagedFile(path, f"is not JSON ({reason})") from None
    if not isinstance(found, dict):
        raise DamagedFile(path, f"holds {type(found).__name__}, not an object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text[:40]}, which is no finite number")
    return number


HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors -> torch
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# In names of rotary frequencies, which older versions of transformers stored with the weights, and which exports
# store for converters to see; they follow from config.json.
DERIVED = "rotary_emb.inv_freq"


def check_shards(folder: Path, geometry: Geometry) -> None:
    """Check that every weight of a LLaMA of these dimensions is there in full.

    Raises:
        ValueError: names the file or the tensor, and what to do.
    """
    where = f"model.path={str(folder)!r}"
    found = stored_tensors(folder)
    for tensor, entry in found.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{where}: {tensor} is stored as {entry['dtype']}; supported: {', '.join(DTYPES)}")
    shapes = {name: tuple(entry["shape"]) for name, entry in found.items()}
    check_shapes(where, shapes, expected_shapes(geometry), is_tied=geometry.tied_embeddings)


def stored_tensors(folder: Path) -> dict[str, Any]:
    """Return, by tensor name, what its shard's header says of it, and "file", the shard's name.

    Raises:
        ValueError: a shard is missing or damaged, two hold the same tensor, or the index says something else.
    """
    where = f"model.path={str(folder)!r}"
    found: dict[str, Any] = {}
    for file in shard_names(folder):
        path = own_file(folder, file)
        if path is None:
            raise ValueError(f"{where}: the shard {file!r} is missing")
        for name, entry in read_header(path).items():
            if name in found:
                raise ValueError(f"{where}: {name!r} is stored twice, in {found[name]['file']!r} and in {file!r}")
            found[name] = entry | {"file": file}
    indexed = _indexed(folder)
    for name, file in indexed.items():
        if name not in found:
            raise ValueError(f"{where}: {INDEX_NAME} lists {name!r}, and its shard {file!r} does not hold it")
        if found[name]["file"] != file:
            raise ValueError(f"{where}: {INDEX_NAME} lists {name!r} in {file!r}, but {found[name]['file']!r} holds it")
    unlisted = [name for name in found.keys() - indexed.keys() if DERIVED not in name]
    if indexed and unlisted:
        raise ValueError(f"{where}: {found[min(unlisted)]['file']!r} holds {min(unlisted)!r}, which the index lacks")
    return found


def check_shapes(
    where: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], *, is_tied: bool
) -> None:
    """Check that the tensors of a folder are exactly the expected weights.

    Raises:
        ValueError: names the first that is missing, unknown or of another shape.
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
    """Return the file names of the shards, sorted: those that the index lists, or the single file.

    Raises:
        ValueError: there are none, or the index names a file outside the folder.
    """
    if indexed := _indexed(folder):
        return sorted(set(indexed.values()))
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


def _indexed(folder: Path) -> dict[str, str]:
    """Return the shard of each tensor as the index lists it; empty where there is no index."""
    index = own_file(folder, INDEX_NAME)
    if index is None:
        return {}
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"model.path: {str(index)!r} is not a complete index")
    for name in files.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"model.path: {str(index)!r} names {name!r}, which is no safetensors file beside it")
    return files


def read_header(path: Path) -> dict[str, Any]:
    """Return {"dtype", "shape", "data_offsets"} by tensor name, in the order of the data.

    Raises:
        ValueError: the file is not as long as its header says (a download that broke off), is no safetensors, or its
            tensors overlap, leave holes, or are not as long as their shapes.
    """
    size = path.stat().st_size
    broken = ValueError(f"model.path: the shard {str(path)!r} is truncated or is not safetensors ({size} bytes)")
    with path.open("rb") as file:
        prefix = file.read(HEADER_LENGTH_BYTES)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == HEADER_LENGTH_BYTES else 0
        if not 0 < length <= min(size, MAX_HEADER_BYTES):
            raise broken
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
            header.pop("__metadata__", None)
            entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
            is_complete = all(_is_entry(entry) for _, entry in entries)
        except _Twice as error:
            raise ValueError(f"model.path: the shard {str(path)!r} holds {error} twice") from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise broken from None
    end = entries[-1][1]["data_offsets"][1] if is_complete and entries else 0
    if not is_complete or size != HEADER_LENGTH_BYTES + length + end:
        raise broken
    _check_places(path, entries)
    return dict(entries)


class _Twice(Refusal):
    """A key occurs twice in a JSON object, and readers differ in which value they take."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise _Twice(repr(name))
    return found


def _is_entry(entry: Any) -> bool:
    offsets, shape = entry["data_offsets"], entry["shape"]
    numbers = [*offsets, *shape]
    return (
        isinstance(entry["dtype"], str)
        and isinstance(shape, list)
        and len(offsets) == 2
        and all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
    )


def _check_places(path: Path, entries: list[tuple[str, Any]]) -> None:
    """Check that entries, sorted by offset, cover every byte once, each with as many bytes as its shape needs."""
    where = f"model.path: the shard {str(path)!r}"
    position = 0
    for name, entry in entries:
        start, end = entry["data_offsets"]
        if start != position:
            what = "overlaps the tensor before it" if start < position else "leaves a hole before it"
            raise ValueError(f"{where}: {name!r} {what} (offsets {start} to {end}, expected from {position})")
        needed = math.prod(entry["shape"]) * ITEM_BYTES.get(entry["dtype"], 0)
        if entry["dtype"] in ITEM_BYTES and end - start != needed:
            raise ValueError(f"{where}: {name!r} of shape {entry['shape']} needs {needed} bytes, it has {end - start}")
        position = end


def stored_dtype(config: Mapping[str, Any], folder: Path) -> str:
    """Return the dtype that a model's weights count as in measurements, estimates and exports in the parent's dtype.

    As dtype="auto" of transformers: what config.json says (`dtype`, or `torch_dtype` of version 4), else the dtype of
    most of the stored weights, else float32. But float64 counts as float32, and float16, whose range is short, as
    bfloat16.

    Raises:
        ValueError: the dtype is none of these.
    """
    stated = config.get("dtype") or config.get("torch_dtype") or _most_stored(folder)
    known = {"float64": "float32", "float32": "float32", "float16": "bfloat16", "bfloat16": "bfloat16"}
    if not isinstance(stated, str) or stated not in known:
        raise ValueError(f"the model's dtype is {shown(stated)}; supported: {', '.join(known)}")
    return known[stated]


def _most_stored(folder: Path) -> str:
    if not any((folder / name).is_file() for name in (INDEX_NAME, SINGLE_NAME)):
        return "float32"  # there is only a config.json
    elements: Counter[str] = Counter()
    for entry in stored_tensors(folder).values():
        elements[entry["dtype"]] += math.prod(entry["shape"])
    (most, _), *_ = elements.most_common(1)
    return DTYPES.get(most, most)
