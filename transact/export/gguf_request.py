"""Can `export.gguf` be had? Asked before any work starts. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transact.config import ExportConfig, RunConfig
from transact.config.export import GGUF_TYPES
from transact.export.gguf_tokenizer import check_tokenizer, is_byte_level
from transact.files import read_json
from transact.models.families import family_of
from transact.models.llama import read_geometry
from transact.models.rotary import OWN_FREQUENCIES, rope_settings
from transact.prune.targets import Q4_BLOCK
from transact.rounds import final_geometries


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
    if kind != "f16" and parent.hidden_size % Q4_BLOCK:
        raise ValueError(
            f"export.gguf={kind!r} is not allowed: hidden_size is {parent.hidden_size}, and {kind} takes multiples of "
            f"{Q4_BLOCK}; it must be f16"
        )
    result = Path(config.output_dir) / "export" / "config.json"
    if result.is_file():  # the run is finished: what it ended with counts, not what it might have
        check_gguf_result(kind, read_json(result))
    else:
        cuts_pairs = any(end.head_dim < parent.head_dim for end in final_geometries(config, parent))
        check_gguf_rotation(config, model_config, cuts_pairs=cuts_pairs)


def check_gguf_result(kind: str, model_config: Mapping[str, Any]) -> None:
    """llama.cpp rotates as an exported model does.

    Raises:
        ValueError: it does not.
    """
    if OWN_FREQUENCIES in model_config:
        raise ValueError(
            f"export.gguf={kind!r} is not allowed: layers or heads of the exported model have rotary frequencies of "
            "their own, and llama.cpp has one set; a new run with prune.method.pair_scope=model gives such a model"
        )
    family = family_of(model_config)
    if family.gguf_architecture != "llama" and rope_settings(model_config)["rope_type"] != "default":
        raise ValueError(
            f"export.gguf={kind!r} is not allowed: the exported model has rotary factors, and llama.cpp's "
            f"{family.model_type} takes none; a new run with prune.rotary_pairs=progression gives a model without"
        )


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


def possible_gguf_types(model_config: Mapping[str, Any], folder: Path) -> list[str]:
    """The types that `export.gguf` can write of an exported config.json with the tokenizer of a folder; none where
    llama.cpp cannot rotate so, or does not know the tokenizer."""
    try:
        check_gguf_result("f16", model_config)
        check_tokenizer(folder)
    except ValueError:
        return []
    return [kind for kind in GGUF_TYPES[1:] if kind == "f16" or model_config["hidden_size"] % Q4_BLOCK == 0]


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
