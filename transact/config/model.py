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
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False

    def to_model_config(self) -> dict[str, Any]:
        """As a config.json dictionary."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {"model_type": "llama", **values}


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which model is pruned."""

    path: str | None = None  # a local folder or a hub id
    revision: str | None = None  # of the hub id
    dtype: str = "float32"  # of the weights in the folders between stages
    export_dtype: str = "parent"
    allow_non_stock: bool = False  # a result that no stock class of transformers loads
    architecture: ArchitectureConfig | None = None

    def __post_init__(self) -> None:
        require_choice("model.dtype", self.dtype, DTYPES)
        require_choice("model.export_dtype", self.export_dtype, EXPORT_DTYPES)
