"""Do stock classes of transformers take a model folder? Asked before the work, which would find out at its end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transact.models.llama import check_special_tokens
from transact.models.model_files import CONFIG, GENERATION_CONFIG, own_file, read_object


def check_stock(folder: Path, attention: str = "sdpa") -> None:
    """Configuration and model classes take config.json, and generation takes generation_config.json.

    Raises:
        ValueError: names the file, and what transformers says of it.
    """
    config = read_object(folder / CONFIG)
    with quiet("transformers"):
        with _refused(f"{CONFIG}: transformers makes no model of it"):
            _make_without_weights(config, attention)
            _make_as_users_do(folder)
        path = own_file(folder, GENERATION_CONFIG)
        if path is None:
            return
        with _refused(f"{GENERATION_CONFIG}: transformers does not take it"):
            from transformers import GenerationConfig

            check_special_tokens(read_object(path), GENERATION_CONFIG, config["vocab_size"])
            GenerationConfig.from_pretrained(folder)


def _make_without_weights(config: dict[str, Any], attention: str) -> None:
    import torch

    from transact.models.stock import stock_class

    model_class, model_config = stock_class(config, attention)
    with torch.device("meta"):
        model_class(model_config)
    if not model_config.return_dict:
        raise ValueError("return_dict is false; supported: true")


def _make_as_users_do(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    described = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(described, trust_remote_code=False)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a foreign configuration fails in every way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{what} ({reason})") from None


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Errors alone are logged."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
