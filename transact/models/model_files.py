"""The files of a model folder that somebody else made: which are read, and what none of them may be.

A link out of the folder is not followed: what it points to would be published with the export. JSON is read up to a
length that no honest file reaches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transact.files import DamagedFile

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

MAX_JSON_BYTES = 64_000_000  # a tokenizer.json of 256,000 words with its merges has 35
MAX_CONFIG_BYTES = 4_000_000


def own_file(folder: Path, name: str) -> Path | None:
    """A regular file of a model folder; None where there is none of this name.

    A link counts where it leads to another file of the folder, or, as in the cache of the Hugging Face hub, to a blob
    of the same repository.

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
    """No file that would be read or copied is a link out of the folder, and each has a name that can be written down.

    Raises:
        ValueError: names the first that is not so.
    """
    for name in sorted(path.name for path in folder.glob("*")):
        if not any(fnmatch(name, pattern) for pattern in DOWNLOADED):
            continue
        if not name.isprintable():
            raise ValueError(f"the file name {name!a} holds characters that cannot be printed: rename it")
        own_file(folder, name)


def licence_files(folder: Path) -> Iterator[Path]:
    """By name.

    Raises:
        ValueError: as `own_file`.
    """
    for name in sorted(path.name for path in folder.glob("*")):
        if any(fnmatch(name, pattern) for pattern in LICENCE_FILES) and own_file(folder, name):
            yield folder / name


def read_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of a foreign file.

    Raises:
        DamagedFile: it is longer than `limit` bytes, no JSON, or not an object.
    """
    size = path.stat().st_size
    if size > limit:
        raise DamagedFile(path, f"has {size} bytes, and no such file has more than {limit}")
    try:
        found = json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # also of UTF-8, of numbers too long, of a million brackets
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
