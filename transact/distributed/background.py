"""Work in a thread, and how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

RUNNING, DONE, FAILED = 0, 1, 2


class Background:
    """Starts at once; goes on, and holds nobody up, when it is left."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.state = RUNNING
        self.result: Any = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.result = work()
            self.state = DONE
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self.error = error
            self.state = FAILED
