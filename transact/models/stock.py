"""Models of stock transformers' classes: built without weights to check a folder, or loaded from one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from transact.errors import LONGEST_REASON, one_line
from transact.models.families import family_of
from transact.models.llama import check_special_tokens, code_files
from transact.models.model_files import CONFIG, GENERATION_CONFIG, own_file, read_object


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


def load_tokenizer(folder: Path, setting: str = "model.path") -> Any:
    """Return the fast tokenizer of a model folder. setting: the one that names it, for messages.

    Raises:
        ValueError: the folder has none.
    """
    from transformers import AutoTokenizer

    try:
        with quiet("transformers"):  # on failure it suggests packages to install, over many lines
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - damaged files make its readers fail in every way
        reason = one_line(error, LONGEST_REASON)
        raise ValueError(f"{setting}: no tokenizer in {str(folder)!r}: {reason}") from None
    if not tokenizer.is_fast:
        raise ValueError(f"{setting}: {str(folder)!r} has no fast tokenizer (tokenizer.json)")
    # A tokenizer.json may hold the truncation and padding of its training, which would cut or pad documents.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def stock_class(config: Mapping[str, Any], attention: str) -> tuple[Any, Any]:
    """Return the model class and its configuration object for a parsed config.json.

    Of layers with widths of their own it is the class in the file that the folder carries.

    Args:
        config: parsed config.json.
        attention: transformers' name of the attention implementation.
    """
    import transformers

    family = family_of(config)
    module = import_module(f"transact.models.{family.modules[0]}") if family.modules else transformers
    model_class = getattr(module, family.architecture)
    config_class = getattr(transformers, family.configuration)
    values = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype", "auto_map")}
    model_config = config_class.from_dict(values | {"use_cache": False}, attn_implementation=attention)
    return model_class, model_config


def load_model(folder: Path, **options: Any) -> Any:
    """Load a model folder as its users will; where its layers differ by the code in it, which must be this program's.

    options: of transformers' `from_pretrained`.

    Raises:
        ValueError: the folder holds other code.
    """
    from transformers import AutoModelForCausalLM

    has_code = check_code(folder)
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=has_code, **options)


def check_code(folder: Path) -> bool:
    """Return whether a folder's layers differ, so that it carries code, which is then the code of this program.

    Raises:
        ValueError: the folder holds other code, which is not run.
    """
    code = code_files(read_object(folder / CONFIG))
    for file in code:
        given = own_file(folder, file.name)
        if given is None or given.read_bytes() != file.read_bytes():
            raise ValueError(f"{str(folder / file.name)!r} is not the code that this version of transact writes")
    return bool(code)


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
