"""The transformers classes that compute a checkpoint folder's model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transact.files import read_json
from transact.models.families import family_of
from transact.models.families.llama import LLAMA
from transact.models.llama import is_stock
from transact.models.own_frequencies import attach_own_frequencies
from transact.models.rotary import head_frequencies


def stock_class(config: Mapping[str, Any], attention: str) -> tuple[Any, Any]:
    """The model class and its configuration object for a parsed config.json.

    A LLaMA with frequencies of its own is a stock LLaMA but for the hooks of `own_frequencies`.

    Args:
        config: parsed config.json.
        attention: transformers' name of the attention implementation.
    """
    import transformers

    family = family_of(config)
    # The name of a class that is not stock is not to be found: its weights and configuration are a LLaMA's.
    model_class = getattr(transformers, family.architecture if is_stock(config) else LLAMA.architecture)
    config_class = getattr(transformers, family.configuration)
    values = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype")}
    model_config = config_class.from_dict(values | {"use_cache": False}, attn_implementation=attention)
    return model_class, model_config


def load_non_stock(folder: Path) -> Any:
    """A folder whose layers or heads have rotary frequencies of their own, as a model in float32.

    For evaluation of whole sequences: positions begin at zero, so it generates without a cache only.
    """
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    model_class, model_config = stock_class(config, "sdpa")
    model = model_class(model_config).eval()
    weights = {
        name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    missing, unknown = model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    tied = ["lm_head.weight"] if config.get("tie_word_embeddings") else []
    assert not unknown and missing in ([], tied), (missing, unknown)
    model.tie_weights()
    attach_own_frequencies(model, head_frequencies(config))
    return model
