"""Write the final model as one file for ExecuTorch, which computes on phones, and compute with that file.

transformers' own exporter makes the program, lowered for XNNPACK. It holds the weights once, in float32, and its
key-value cache, and is called as ExecuTorch's runner for language models calls programs: with the next tokens and their
positions. So one file reads a prompt and generates.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transact.config.outputs import ExportConfig
from transact.config.setting import require
from transact.files import read_json
from transact.models.families import family_of
from transact.models.rotary import context_limit
from transact.models.stock import load_model

LONGEST_DEFAULT = 2048  # tokens that the cache holds where the setting does not say
TRACED_TOKENS = 8  # of the call that is traced; the program takes any number up to its cache's


def check_executorch(export: ExportConfig, model_config: Mapping[str, Any]) -> None:
    """Check that the package is installed, and that the model takes as many tokens as the cache is to hold.

    Raises:
        ValueError: one line with what to change.
    """
    if export.executorch == "none":
        return
    if importlib.util.find_spec("executorch") is None:
        asked = f"export.executorch={export.executorch!r}"
        raise ValueError(f"{asked} needs the package executorch: pip install 'transact[executorch]'")
    most, context = _most_tokens(model_config), export.executorch_context
    allowed = context is None or context <= most
    require("export.executorch_context", context, allowed, f"the model takes at most {most} tokens")


def cached_tokens(export: ExportConfig, model_config: Mapping[str, Any]) -> int:
    """Return the number of tokens, prompt and answer together, that the file's cache holds."""
    return export.executorch_context or min(LONGEST_DEFAULT, _most_tokens(model_config))


def _most_tokens(model_config: Mapping[str, Any]) -> int:
    """Return what the model was made for, or its sliding window: the cache has no other layout for that."""
    limit = context_limit(model_config)
    return min(limit, family_of(model_config).window(model_config) or limit)


class CachedStep(torch.nn.Module):
    """Compute the logits of the token after the given ones, with a cache of fixed size that the module owns."""

    def __init__(self, model: Any, context: int) -> None:
        from transformers.cache_utils import Cache, StaticLayer

        super().__init__()
        self.model = model
        self._cache = Cache(layers=[StaticLayer(context) for _ in model.model.layers])
        for number, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            shape = 1, attention.k_proj.out_features // attention.head_dim, context, attention.head_dim
            for name in ("keys", "values"):
                self.register_buffer(f"{name}_{number}", torch.zeros(shape, dtype=model.dtype), persistent=False)

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """Return logits (1, 1, vocabulary) of tokens (1, length) at positions (length,) in a row."""
        for number, layer in enumerate(self._cache.layers):
            # Set anew in each call: what is traced then are this module's buffers, which a program may write to.
            layer.keys, layer.values = getattr(self, f"keys_{number}"), getattr(self, f"values_{number}")
            layer.cumulative_length, layer.device, layer.is_initialized = input_pos[0].clone(), tokens.device, True
        computed = self.model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = computed.logits
        return logits


def write_executorch(folder: Path, target: Path, backend: str, context: int) -> None:
    """Write the model in an exported folder to the file `target`.

    Args:
        backend: "xnnpack".
        context: tokens, prompt and answer together, that the file's cache holds.
    """
    from transformers.exporters.exporter_executorch import ExecutorchConfig, ExecutorchExporter

    model = load_model(folder, dtype=torch.float32).eval()
    length = torch.export.Dim("length", min=1, max=context)
    positions = torch.arange(TRACED_TOKENS)
    inputs = {"tokens": positions.unsqueeze(0), "input_pos": positions}
    config = ExecutorchConfig(backend=backend, dynamic_shapes={"tokens": {1: length}, "input_pos": {0: length}})
    exporter = ExecutorchExporter()
    with _with_constants(_constants(folder, context)):
        program, _ = exporter.export_program(CachedStep(model, context), inputs, config)
    exporter.save_program(program, target)


def _constants(folder: Path, context: int) -> dict[str, Any]:
    """Return what ExecuTorch's runner for language models asks a program for, under its names."""
    config, generation = read_json(folder / "config.json"), folder / "generation_config.json"
    special = config | (read_json(generation) if generation.is_file() else {})
    ends = special.get("eos_token_id")
    found = {
        "get_max_seq_len": context,
        "get_max_context_len": context,
        "get_vocab_size": config["vocab_size"],
        "get_bos_id": special.get("bos_token_id"),
        "get_eos_ids": [ends] if isinstance(ends, int) else ends,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": True,
    }
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def _with_constants(constants: Mapping[str, Any]) -> Iterator[None]:
    """Let transformers' exporter write constants into a program: ExecuTorch takes them, the exporter passes none on."""
    from transformers.exporters import exporter_executorch

    plain = exporter_executorch.to_edge_transform_and_lower
    exporter_executorch.to_edge_transform_and_lower = functools.partial(plain, constant_methods=dict(constants))
    try:
        yield
    finally:
        exporter_executorch.to_edge_transform_and_lower = plain


def executorch_logits(file: Path, tokens: Tensor, prompt: int) -> Tensor:
    """Return logits (sequences, length - prompt + 1, vocabulary) by ExecuTorch: of a prompt, then token by token.

    Args:
        tokens: (sequences, length), of the same model.
        prompt: tokens of each sequence that are read at once.
    """
    from executorch.runtime import Runtime  # type: ignore[import-not-found]  # where it is not installed

    forward = Runtime.get().load_program(file).load_method("forward")

    def step(part: Tensor, first: int) -> Tensor:
        found: Tensor = forward.execute([part.contiguous(), torch.arange(first, first + part.shape[1])])[0]
        return found[:, -1].clone()  # the next call writes over it

    rows = []
    for sequence in tokens.unsqueeze(1):
        steps = [(0, prompt), *((place, place + 1) for place in range(prompt, tokens.shape[1]))]
        rows.append(torch.stack([step(sequence[:, first:last], first) for first, last in steps], dim=1))
    return torch.cat(rows)
