"""Write the final model as a folder that stock software loads, and that stops a converter which would misread it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from transact.engine.model_folder import add_code, copy_companions, stored_config
from transact.files import read_json, write_json, write_text
from transact.models.families import LLAMA, OWN_FREQUENCIES
from transact.models.model_files import DERIVED, SINGLE_NAME
from transact.models.rotary import inverse_frequencies, rope_settings, stated_settings
from transact.models.shard_writer import write_shard
from transact.models.tensor_files import ModelReader, write_index

# A tensor of this name stops llama.cpp's converter, which skips only names that *end* with DERIVED. It is no weight of
# layer 0, and our own readers leave it out.
GUARD_NAME = f"model.layers.0.self_attn.{DERIVED}_of_kept_pairs"

# The builder of ONNX Runtime GenAI leaves out what it does not know of a LLaMA's rotation, and multiplies positions by
# what stands under this key, which nothing else reads: with a word there it stops. It does so only where the other key
# agrees with max_position_embeddings, or is missing.
GUARD_KEY, OTHER_LIMIT = "rope_position_scale", "original_max_position_embeddings"
KNOWN_TO_GENAI = ("default", "llama3")


def guard_tensors(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the guard tensor by name where config.json states factors, else nothing: radians per position, float32."""
    if rope_settings(config)["rope_type"] != "longrope":
        return {}
    return {GUARD_NAME: inverse_frequencies(config).float()}


def guarded_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with the word on which software stops that would leave out some of its rotary settings."""
    kind = rope_settings(config)["rope_type"]
    others = {name: value for name, value in config.items() if name != GUARD_KEY}
    if config.get("model_type") != LLAMA.model_type or kind in KNOWN_TO_GENAI:
        return others
    others.pop(OTHER_LIMIT, None)  # the rotary settings state their own
    return others | {GUARD_KEY: kind}


SHARD_BYTES = 4_000_000_000


def split_into_shards(reader: ModelReader, bytes_per_element: int, limit: int = SHARD_BYTES) -> list[list[str]]:
    """Return the tensor names of each shard, in the order of the source.

    No shard is above `limit` bytes unless a single tensor is.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name in reader.files:
        size = torch.Size(reader.shape(name)).numel() * bytes_per_element
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_export(source: Path, target: Path, dtype: str, model_card: str) -> None:
    """Write the exported model into the folder `target`, which must exist; one shard is in memory at a time."""
    torch_dtype = getattr(torch, dtype)
    config = read_json(source / "config.json")
    if OWN_FREQUENCIES not in config:
        config |= stated_settings(config)
    config = guarded_config(config)
    guard = guard_tensors(config)
    with ModelReader(source) as reader:
        shards = split_into_shards(reader, torch_dtype.itemsize)
        files: dict[str, str] = {}
        total = 0
        for number, names in enumerate(shards, start=1):
            file = SINGLE_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {name: reader.tensor(name).to(torch_dtype) for name in names}
            if number == 1:
                tensors |= guard
            total += write_shard(target / file, tensors, None)["size"]
            files.update(dict.fromkeys(tensors, file))
    if len(shards) > 1:
        write_index(target, files, total)
    write_json(target / "config.json", stored_config(config, dtype))
    copy_companions(source, target)
    add_code(config, target)
    _name_old_tokenizer_class(target / "tokenizer_config.json")
    write_text(target / "README.md", model_card)


def _name_old_tokenizer_class(path: Path) -> None:
    """Name the tokenizer class as transformers 4 does: 5 writes a name that 4 does not know, and knows both."""
    if path.is_file():
        config = read_json(path)
        if config.get("tokenizer_class") == "TokenizersBackend":
            write_json(path, config | {"tokenizer_class": "PreTrainedTokenizerFast"})
