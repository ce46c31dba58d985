"""Can `export.gguf` be had? Asked before any work starts. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transact.config import ExportConfig, RunConfig
from transact.config.export import GGUF_TYPES
from transact.exporting.gguf_tokenizer import check_tokenizer, is_byte_level
from transact.exporting.shapes import Q4_BLOCK, cut_rows
from transact.geometry import Geometry
from transact.models.families import family_of
from transact.models.llama import read_geometry
from transact.models.rotary import rope_settings
from transact.outline import final_geometries


def check_gguf(config: RunConfig, model_config: Mapping[str, Any]) -> None:
    """Package, family and dimensions allow the file.

    Raises:
        ValueError: one line with what to change.
    """
    kind = config.export.gguf
    if kind == "none":
        return
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"export.gguf={kind!r} needs the package gguf: pip install 'transact[gguf]'")
    parent = read_geometry(model_config)
    ends = final_geometries(config, parent)
    cuts_heads = config.mode != "pretrain" and config.prune.method.attention == "heads"
    check_gguf_rotation(config, model_config, cuts_pairs=any(end.head_dim < parent.head_dim for end in ends))
    for geometry in ends:
        check_gguf_dimensions(kind, geometry, cuts_heads=cuts_heads)


def check_gguf_rotation(config: RunConfig, model_config: Mapping[str, Any], *, cuts_pairs: bool) -> None:
    """llama.cpp can rotate as the model will.

    cuts_pairs: the model may lose rotary pairs.

    Raises:
        ValueError: it cannot.
    """
    kind, method = config.export.gguf, config.prune.method
    if method.pair_scope != "model":
        raise ValueError(
            f"export.gguf={kind!r} is not allowed with prune.method.pair_scope={method.pair_scope}: llama.cpp has one "
            "set of rotary frequencies; the scope must be model"
        )
    if family_of(model_config).gguf_architecture == "llama":
        return
    family = family_of(model_config).model_type
    if rope_settings(model_config)["rope_type"] != "default":
        raise ValueError(f"export.gguf={kind!r} is not allowed: llama.cpp's {family} takes no rotary factors")
    if cuts_pairs and config.prune.rotary_pairs != "progression":
        raise ValueError(
            f"export.gguf={kind!r} is not allowed with prune.rotary_pairs={config.prune.rotary_pairs}: llama.cpp's "
            f"{family} takes no rotary factors; it must be progression"
        )


def check_gguf_dimensions(kind: str, geometry: Geometry, *, cuts_heads: bool = False) -> None:
    """Rows of every weight divide into blocks.

    Raises:
        ValueError: names the dimension and the multiple to use.
    """
    if kind in ("none", "f16"):
        return
    if geometry.hidden_size % Q4_BLOCK:
        raise ValueError(
            f"export.gguf={kind!r} is not allowed: hidden_size is {geometry.hidden_size}, and {kind} takes multiples "
            f"of {Q4_BLOCK}; it must be f16"
        )
    for name, (size, row) in cut_rows(geometry).items():
        if row % Q4_BLOCK == 0:
            continue
        refused, takes = f"export.gguf={kind!r} is not allowed", f"{kind} takes multiples of {Q4_BLOCK}"
        if name == "head_dim" and cuts_heads:
            raise ValueError(
                f"{refused}: {geometry.num_attention_heads} heads of {size} may stay, which makes rows of {row} "
                f"weights, and {takes}; it must be f16, or prune.method.attention pairs"
            )
        raise ValueError(
            f"{refused}: {name} may become {size}, which makes rows of {row} weights, and {takes}; it must be f16, "
            f"or set prune.multiple.{name}={Q4_BLOCK} or prune/multiple=llama_cpp_q4 in a new run"
        )


def possible_gguf_types(model_config: Mapping[str, Any], folder: Path) -> list[str]:
    """The types that `export.gguf` can write of an exported config.json with the tokenizer of a folder; none where
    llama.cpp cannot rotate so, or does not know the tokenizer."""
    is_llama = family_of(model_config).gguf_architecture == "llama"
    if not is_llama and rope_settings(model_config)["rope_type"] != "default":
        return []
    try:
        check_tokenizer(folder)
    except ValueError:
        return []
    found = []
    for kind in GGUF_TYPES[1:]:
        with suppress(ValueError):
            check_gguf_dimensions(kind, read_geometry(model_config))
            found.append(kind)
    return found


def check_gguf_tokenizer(export: ExportConfig, folder: Path) -> None:
    """llama.cpp knows the tokenizer.

    Raises:
        ValueError: it does not.
    """
    if export.gguf == "none":
        return
    try:
        check_tokenizer(folder)
        if not is_byte_level(folder):
            import sentencepiece  # noqa: F401
    except ImportError:
        raise ValueError(
            f"export.gguf={export.gguf!r} needs the package sentencepiece: pip install sentencepiece"
        ) from None
    except ValueError as error:
        raise ValueError(f"export.gguf={export.gguf!r} is not allowed for {str(folder)!r}: {error}") from None
