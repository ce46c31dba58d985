"""Configurations as the command line makes them, each composed once."""

from __future__ import annotations

import copy
import functools

from transact.config import RunConfig
from transact.configuring import compose_config


def composed(*overrides: str) -> RunConfig:
    """A copy: whoever changes it changes nobody else's."""
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    return compose_config(list(overrides))
