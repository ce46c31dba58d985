"""Which model is pruned: conf/model/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transact.checks import require_choice

DTYPES = ("float32", "bfloat16")
EXPORT_DTYPES = ("parent", *DTYPES)


@dataclass(kw_only=True, slots=True)
class ArchitectureConfig:
    """The dimensions of a LLaMA, under the names of its config.json.

    `mode=plan` uses them where the weights are not at hand; `mode=pretrain` starts a model of them.
    """

    hidden_size: int
    """Width of the residual stream, never cut."""
    num_hidden_layers: int
    """Transformer layers."""
    num_attention_heads: int
    """Query heads."""
    num_key_value_heads: int
    """Key and value heads."""
    head_dim: int
    """Dims of a head."""
    intermediate_size: int
    """Channels inside the MLP."""
    vocab_size: int
    """Tokens of the vocabulary."""
    max_position_embeddings: int
    """Tokens of the longest context."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-5
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

    path: str | None = None
    """The parent: a local folder or an id of the Hugging Face hub. null: with mode=pretrain."""
    revision: str | None = None
    """A branch, tag or commit of the hub id. null: the newest."""
    dtype: str = "float32"
    """"float32" or "bfloat16": of the weights in the folders between stages."""
    export_dtype: str = "parent"
    """"parent" (the dtype that the parent is stored in, bfloat16 for float16), "float32" or "bfloat16": of the exported
    weights."""
    allow_non_stock: bool = False
    """Accept a result that no stock class of transformers loads, for choices that need one."""
    architecture: ArchitectureConfig | None = None
    """Dimensions of the model: mode=plan uses them where the weights are not at hand, mode=pretrain starts a model of
    them. null: read from the weights' folder."""

    def __post_init__(self) -> None:
        require_choice("model.dtype", self.dtype, DTYPES)
        require_choice("model.export_dtype", self.export_dtype, EXPORT_DTYPES)
