"""Which model is pruned: conf/model/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transact.config.setting import LONGEST_PATH, setting

DTYPES = ("float32", "bfloat16")
EXPORT_DTYPES = ("parent", *DTYPES)


@dataclass(kw_only=True, slots=True)
class ArchitectureConfig:
    """The dimensions of a LLaMA, under the names of its config.json.

    `mode=estimate` uses them where the weights are not at hand; `mode=pretrain` starts a model of them.
    """

    hidden_size: int = setting(at_least=1, at_most=2**17)
    """Width of the residual stream, never cut."""
    num_hidden_layers: int = setting(at_least=1, at_most=1000)
    """Transformer layers."""
    num_attention_heads: int = setting(at_least=1, at_most=2**12)
    """Query heads."""
    num_key_value_heads: int = setting(at_least=1, at_most=2**12)
    """Key and value heads."""
    head_dim: int = setting(at_least=2, at_most=2**12)
    """Dims of a head."""
    intermediate_size: int = setting(at_least=1, at_most=2**20)
    """Channels inside the MLP."""
    vocab_size: int = setting(at_least=2, at_most=2**24)
    """Tokens of the vocabulary."""
    max_position_embeddings: int = setting(at_least=2, at_most=2**30)
    """Tokens of the longest context."""
    rope_theta: float = setting(10000.0, at_least=1, at_most=1e15)
    """Base of the rotary frequencies."""
    rms_norm_eps: float = setting(1e-5, at_least=0, at_most=1)
    """Added to the mean square in norms."""
    tie_word_embeddings: bool = False
    """Whether the output layer is the transposed embedding."""

    def to_model_config(self) -> dict[str, Any]:
        """As a config.json dictionary."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {"model_type": "llama", **values}


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which model is pruned."""

    path: str | None = setting(None, longest=LONGEST_PATH)
    """The parent: a local folder or an id of the Hugging Face hub. null: with mode=pretrain."""
    revision: str | None = setting(None)
    """A branch, tag or commit of the hub id. null: the newest."""
    dtype: str = setting("float32", choices=DTYPES)
    """"float32" or "bfloat16": of the weights in the folders between stages."""
    export_dtype: str = setting("parent", choices=EXPORT_DTYPES)
    """"parent" (the dtype that the parent is stored in, bfloat16 for float16), "float32" or "bfloat16": of the exported
    weights."""
    allow_non_stock: bool = False
    """Accept a result that no stock class of transformers loads, for choices that need one."""
    architecture: ArchitectureConfig | None = None
    """Dimensions of the model: mode=estimate uses them where the weights are not at hand, mode=pretrain starts a model
    of them. null: read from the weights' folder."""
