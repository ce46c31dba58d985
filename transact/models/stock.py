"""Models of stock transformers' classes: built without weights to check a folder, or loaded from one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from transact.errors import LONGEST_REASON, one_line
from transact.files import read_json
from transact.models.families import LLAMA, family_of
from transact.models.llama import check_special_tokens, is_stock
from transact.models.model_files import CONFIG, GENERATION_CONFIG, own_file, read_object
from transact.models.own_frequencies import attach_own_frequencies
from transact.models.rotary import head_frequencies


def check_stock(folder: Path) -> None:
    """Check that transformers' classes accept config.json, and that generation accepts generation_config.json.

    Raises:
        ValueError: names the file, and what transformers says of it.
    """
    config = read_object(folder / CONFIG)
    with quiet("transformers"):
        with _refused(f"{CONFIG}: transformers makes no model of it"):
            _make_without_weights(config)
            _make_as_users_do(folder)
        path = own_file(folder, GENERATION_CONFIG)
        if path is None:
            return
        with _refused(f"{GENERATION_CONFIG}: transformers does not take it"):
            from transformers import GenerationConfig

            check_special_tokens(read_object(path), GENERATION_CONFIG, config["vocab_size"])
            GenerationConfig.from_pretrained(folder)


def _make_without_weights(config: dict[str, Any]) -> None:
    model_class, model_config = stock_class(config, "sdpa")
    with torch.device("meta"):
        model_class(model_config)
    if not model_config.return_dict:
        raise ValueError("return_dict is false; supported: true")


def _make_as_users_do(folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    described = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(described, trust_remote_code=False)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a foreign configuration can fail in any way
        raise ValueError(f"{what} ({one_line(error, LONGEST_REASON)})") from None


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep a library from logging anything below an error until the block ends."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def load_tokenizer(folder: Path) -> Any:
    """Return the fast tokenizer of a model folder.

    Raises:
        ValueError: the folder has none.
    """
    from transformers import AutoTokenizer

    try:
        with quiet("transformers"):  # on failure it suggests packages to install, over many lines
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - damaged files make its readers fail in every way
        reason = one_line(error, LONGEST_REASON)
        raise ValueError(f"model.path: no tokenizer in {str(folder)!r}: {reason}") from None
    if not tokenizer.is_fast:
        raise ValueError(f"model.path: {str(folder)!r} has no fast tokenizer (tokenizer.json)")
    # A tokenizer.json may hold the truncation and padding of its training, which would cut or pad documents.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def stock_class(config: Mapping[str, Any], attention: str) -> tuple[Any, Any]:
    """Return the model class and its configuration object for a parsed config.json.

    A LLaMA with frequencies of its own is a stock LLaMA but for the hooks of `own_frequencies`.

    Args:
        config: parsed config.json.
        attention: transformers' name of the attention implementation.
    """
    import transformers

    family = family_of(config)
    # transformers has no class for a model that is not stock; its weights and configuration are a LLaMA's.
    model_class = getattr(transformers, family.architecture if is_stock(config) else LLAMA.architecture)
    config_class = getattr(transformers, family.configuration)
    values = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype")}
    model_config = config_class.from_dict(values | {"use_cache": False}, attn_implementation=attention)
    return model_class, model_config


@contextmanager
def unpacked() -> Iterator[None]:
    """Keep forwards in the block from asking the device whether positions start anew within a sequence: they do not.

    transformers reads the answer in every forward, and the host waits for all that the device has to do.
    """
    from transformers import masking_utils

    before = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = before


def load_non_stock(folder: Path) -> Any:
    """Load a folder whose layers or heads have rotary frequencies of their own, as a model in float32.

    It is for evaluation of whole sequences: positions begin at zero, so it generates without a cache only.
    """
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
