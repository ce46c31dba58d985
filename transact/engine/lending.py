"""One engine for inference that stages hand on: loading takes minutes, and several stages in turn look at a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from transact.config.machines import EngineConfig
from transact.distributed.process import ProcessGroup
from transact.engine.engine import Engine, open_engine


class LentEngine:
    """The engine that is open, if there is one; every method is collective.

    A folder is known by its path: whoever changes its files calls `close` first.
    """

    def __init__(self) -> None:
        self._open: tuple[Path, EngineConfig, Engine] | None = None
        self._stack = ExitStack()

    @contextmanager
    def of(self, folder: Path, config: EngineConfig, group: ProcessGroup) -> Iterator[Engine]:
        """Yield an engine of a model folder, which stays open after the block.

        It is the one that is open already where that has the same folder and settings, else that one is closed first.
        """
        if self._open is None or self._open[:2] != (folder, config):
            self.close()
            # Not left in a `finally`, as in `open_engine`: after an error nobody closes it.
            self._open = folder, config, self._stack.enter_context(open_engine(folder, config, group))
        yield self._open[2]

    def close(self) -> None:
        """Close the engine that is open, for example before its memory is needed."""
        self._open = None
        self._stack.close()
