"""Random LLaMAs as model folders, from the demo's dimensions to a billion parameters."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.workload import REPOSITORY
from transact.config.inputs import ArchitectureConfig
from transact.distributed.process import ProcessGroup
from transact.engine.model_folder import layer_groups, stored_config, write_model_folder
from transact.geometry import Widths
from transact.models.llama import expected_shapes, layerwise_config, read_geometry

INITIAL_DEVIATION = 0.02
ROW_SPREAD = 0.5  # standard deviation of the logarithm of a row's scale


def _demo_architecture() -> ArchitectureConfig:
    text = (REPOSITORY / "conf" / "model" / "demo_random.yaml").read_text(encoding="utf-8")
    return ArchitectureConfig(**yaml.safe_load(text)["architecture"])


def _architecture(hidden: int, layers: int, heads: int, key_value_heads: int, **others: Any) -> ArchitectureConfig:
    return ArchitectureConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=hidden // heads,
        **others,
    )


SMALL = {"vocab_size": 2048, "max_position_embeddings": 512, "tie_word_embeddings": True}
ARCHITECTURES: dict[str, Callable[[], ArchitectureConfig]] = {
    "tiny": lambda: _architecture(64, 2, 4, 2, intermediate_size=160, **(SMALL | {"vocab_size": 512})),
    "demo": _demo_architecture,
    "14m": lambda: _architecture(384, 8, 6, 2, intermediate_size=1024, **SMALL),
    "25m": lambda: _architecture(512, 8, 8, 4, intermediate_size=1408, **SMALL),
    "130m": lambda: _architecture(1024, 10, 16, 8, intermediate_size=2816, **(SMALL | {"vocab_size": 8192})),
    # SmolLM2-135M's dimensions.
    "135m": lambda: _architecture(
        576, 30, 9, 3, intermediate_size=1536, vocab_size=49_152, max_position_embeddings=512, tie_word_embeddings=True
    ),
    "315m": lambda: _architecture(1536, 12, 24, 8, intermediate_size=4096, **(SMALL | {"vocab_size": 8192})),
    # TinyLlama's dimensions. Untied, as are the models that transact is for.
    "1b": lambda: _architecture(
        2048, 22, 32, 4, intermediate_size=5632, vocab_size=32_000, max_position_embeddings=2048
    ),
    "7b_8_layers": lambda: _architecture(
        4096, 8, 32, 32, intermediate_size=11_008, vocab_size=32_000, max_position_embeddings=4096
    ),
}


def write_random_model(
    folder: Path, architecture: ArchitectureConfig, group: ProcessGroup, widths: Sequence[Widths] = ()
) -> None:
    """Write a random LLaMA as a model folder, a layer at a time (collective). Any number of ranks makes the same.

    widths: of every layer, where they differ.
    """
    settings = architecture.to_model_config()
    if widths:
        settings = layerwise_config(settings, read_geometry(settings).with_layers(widths))
    shapes = expected_shapes(read_geometry(settings))

    def maker(names: list[str]) -> Callable[[], dict[str, torch.Tensor]]:
        return lambda: {name: _random_weight(name, shapes[name]) for name in names}

    write_model_folder(
        folder,
        group,
        [maker(names) for names in layer_groups(shapes)],
        every_rank_reads=False,
        config=stored_config(settings, "float32"),
        companions=folder.parent,
    )


def _random_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return Gaussian weights with rows of very different size; ones for a norm.

    Channels of a trained model differ by orders of magnitude. Those of a plain random one differ by a few
    percent, so that rounding would decide which of them are kept.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    scales = (ROW_SPREAD * torch.randn(shape[0], 1, generator=generator)).exp()
    return INITIAL_DEVIATION * scales * torch.randn(shape, generator=generator)


def load_stock_model(folder: Path, dtype: str) -> Any:
    """Load the model as users of transformers do: whole, on the CPU, with nothing of transact or DeepSpeed in it."""
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
