"""Ranks whose numbers of forwards differ, around a model that needs all of them for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from transact.distributed.process import ProcessGroup


@contextmanager
def in_step(module: nn.Module, group: ProcessGroup, fill: Callable[[], object]) -> Iterator[None]:
    """Inside, every rank runs as many forwards of `module` as it has to; all leave together.

    Before a forward the ranks tell one another who has one; a rank that has none left takes part with `fill`, a
    forward whose result nobody wants. Not for code that exchanges anything between its forwards.

    Raises:
        Stopped: on every rank, before the next forward, when any was asked to stop.
    """

    def agree(has_one: bool) -> bool:
        some, asked = group.any(has_one, group.is_asked_to_stop)
        if asked:
            group.stop()
        return some

    # Before those hooks that gather weights.
    hook = module.register_forward_pre_hook(lambda *_: agree(True) and None, prepend=True)
    yield  # not in a `try`: after an error the others learn from the broken connection, and would wait here
    hook.remove()
    while agree(False):
        fill()
