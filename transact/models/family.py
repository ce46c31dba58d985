"""What tells one family of LLaMA-like decoders from another.

All of them share the layout that the rest of transact works on: pre-norm layers, rotary embedding by halves,
grouped-query attention, a gated MLP without biases. A new one that shares it too is a file in `families/` and a line
in its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]  # a parsed config.json


def no_window(_config: Config) -> None:
    """Every position sees all before it."""


def nothing_more(_config: Config) -> None:
    """The checks that all families share are enough."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Attributes:
    model_type: of config.json.
    architecture: transformers' class of the model.
    configuration: transformers' class of its configuration.
    query_key_value_bias: whether q_proj, k_proj and v_proj have a bias.
    query_key_norm: whether queries and keys pass a norm over each head's dims, after the projection and before
        the rotation, whose weight the heads share.
    heads_divide_hidden_size: whether the configuration insists on it.
    has_own_frequencies: whether `transact_llama` computes the same, with frequencies that no stock class takes.
    required: fields of config.json that must be there because silence means something else in every family.
    window: how many positions attention looks back; None: all.
    check: raises ValueError for what the family has and slicing would damage.
    gguf_architecture: llama.cpp's name of a computation that is the same.
    """

    model_type: str
    architecture: str
    configuration: str
    query_key_value_bias: bool = False
    query_key_norm: bool = False
    heads_divide_hidden_size: bool = False
    has_own_frequencies: bool = False
    required: tuple[str, ...] = ("num_key_value_heads", "max_position_embeddings")
    window: Callable[[Config], int | None] = no_window
    check: Callable[[Config], None] = nothing_more
    gguf_architecture: str = "llama"


def refuse_biases(config: Config) -> None:
    """Raises ValueError: projections have biases, in a family whose biases are not known."""
    refuse_if_true(config, "attention_bias", "mlp_bias")


def refuse_if_true(config: Config, *names: str) -> None:
    """Raises ValueError: one of these switches is on."""
    for name in names:
        if config.get(name):
            raise ValueError(f"{name} is {config[name]}; supported: False")
