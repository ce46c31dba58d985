"""Configurations as the command line makes them. Hydra composes each choice of files once, which takes it 0.15 s."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from transact.config import compose as product
from transact.config.run import RunConfig
from transact.stages.preflight import with_batch


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """A copy, with a batch for one rank: whoever changes it changes nobody else's."""
    config = copy.deepcopy(_composed(tuple(overrides)))
    return with_batch(config, 1) if config.data.sequence_length else config


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    """Plain values are set in a copy of what the chosen files say, as Hydra does last; all else is left to Hydra."""
    parsed = [(each, _parsed(each)) for each in overrides]
    chosen = tuple(each for each, override in parsed if _chooses_a_file(override))
    values = [override for each, override in parsed if each not in chosen]
    if any(each.type != OverrideType.CHANGE or each.is_sweep_override() for each in values):
        return product.compose_config(list(overrides))
    composed = copy.deepcopy(_of_files(chosen))
    try:
        for each in values:
            OmegaConf.update(composed, each.key_or_group, each.value(), merge=True)
    except OmegaConfBaseException:
        return product.compose_config(list(overrides))  # which says what is wrong
    return product.typed_config(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]


@functools.cache
def _of_files(chosen: tuple[str, ...]) -> DictConfig:
    product.register()
    with initialize_config_dir(str(product.conf_folder()), version_base="1.3"):
        return compose("config", overrides=list(chosen))


@functools.cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _chooses_a_file(override: Override) -> bool:
    return (product.conf_folder() / override.key_or_group).is_dir()
