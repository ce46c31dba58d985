"""Logits of an exported folder by stock code in float32, within free memory: of the whole model, or layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from transact.engine.activation_memory import forward_bytes
from transact.engine.free_memory import free_bytes
from transact.engine.gram_memory import FLOAT32_BYTES, FREE_SHARE, GIB
from transact.files import read_json
from transact.geometry import Geometry
from transact.models.folder import geometry_of
from transact.models.llama import is_stock, layer_of
from transact.models.model_files import check_shards
from transact.models.stock import check_stock, load_model
from transact.models.tensor_files import ModelReader
from transact.stages.sequential import EMBEDDING, SingleLayer
from transact.stages.workload import CHECKED_TOKENS

CHECKED_ROWS = 8192  # of the output layer that is read at a time


def whole_check_bytes(geometry: Geometry, tokens: int = CHECKED_TOKENS) -> float:
    """Return the bytes with which one rank computes logits of the whole exported model in float32.

    Without the logits that they are compared with, and what is mapped of files.
    """
    at_work = tokens * (geometry.vocab_size + forward_bytes(geometry, 1))
    return (geometry.parameters() + at_work) * FLOAT32_BYTES


def layer_check_bytes(geometry: Geometry, tokens: int = CHECKED_TOKENS) -> float:
    """Return the bytes of the same with one layer in memory at a time, and the output layer in parts."""
    layer = geometry.largest_layer() + tokens * forward_bytes(geometry, 1)
    rows = min(CHECKED_ROWS, geometry.vocab_size)
    output = tokens * geometry.vocab_size + rows * (tokens + geometry.hidden_size)
    return max(layer, output) * FLOAT32_BYTES


def stock_logits(
    folder: Path,
    tokens: Tensor,
    device: torch.device,
    done: Callable[[], object] = lambda: None,
    usable: float | None = None,
) -> tuple[Tensor, str]:
    """Return the logits of tokens (sequences, length) on the CPU, and in words how they were computed.

    Args:
        device: that computes.
        done: called when a layer is computed.
        usable: bytes of memory that may be filled; None for most of what is free, of the machine and the device.
    """
    if usable is None:
        usable = FREE_SHARE * min(free_bytes(torch.device("cpu")), free_bytes(device))
    needed = whole_check_bytes(geometry_of(folder), tokens.numel())
    loader = "transformers" if is_stock(read_json(folder / "config.json")) else "transformers with the folder's code"
    if needed <= usable:
        return whole_logits(folder, tokens, device), f"{loader} loads it"
    sizes = f"the whole takes {needed / GIB:.2f} GiB in float32, and {usable / GIB:.2f} may be filled"
    return logits_by_layer(folder, tokens, device, done), f"{loader} computes it layer by layer ({sizes})"


@torch.no_grad()
def whole_logits(folder: Path, tokens: Tensor, device: torch.device) -> Tensor:
    """Load the model as its users will, and return its logits."""
    model = load_model(folder, dtype=torch.float32).to(device)
    found: Tensor = model(input_ids=tokens.to(device), use_cache=False).logits
    return found.cpu()


@torch.no_grad()
def logits_by_layer(
    folder: Path, tokens: Tensor, device: torch.device, done: Callable[[], object] = lambda: None
) -> Tensor:
    """Return the logits, with the weights of one layer in memory at a time; a weight that is missing is an error.

    Raises:
        ValueError: the folder does not hold the weights that its config.json describes, or transformers refuses it.
    """
    from transformers.initialization import no_init_weights

    geometry, config = geometry_of(folder), read_json(folder / "config.json")
    check_shards(folder, geometry)
    if is_stock(config):
        check_stock(folder)
    with ModelReader(folder) as reader:
        hidden = reader.tensor(EMBEDDING)[tokens].float().to(device)
        for number in range(geometry.num_layers):
            with no_init_weights():
                layer = SingleLayer(config, number).to(device)
            layer.load_layer({name: reader.tensor(name) for name in reader.files if layer_of(name) == number}, number)
            hidden = layer(hidden)
            layer.release()
            done()
        layer.norm.weight.copy_(reader.tensor("model.norm.weight"))
        hidden = layer.norm(hidden)
        output = EMBEDDING if geometry.tied_embeddings else "lm_head.weight"
        logits = torch.empty(*tokens.shape, geometry.vocab_size)
        for first in range(0, geometry.vocab_size, CHECKED_ROWS):
            last = min(first + CHECKED_ROWS, geometry.vocab_size)
            rows = reader.flat_range(output, first * geometry.hidden_size, last * geometry.hidden_size)
            weight = rows.view(last - first, geometry.hidden_size).float().to(device)
            logits[..., first:last] = functional.linear(hidden, weight).cpu()
    return logits
