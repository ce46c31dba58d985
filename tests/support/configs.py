"""Configurations as the command line makes them, each composed once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

from transact.config import compose
from transact.config.run import RunConfig


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """A copy: whoever changes it changes nobody else's."""
    return copy.deepcopy(_composed(tuple(overrides)))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    return compose.compose_config(list(overrides))
