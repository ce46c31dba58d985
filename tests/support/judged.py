"""A request judged in the test's own process, up to the point where the ranks would meet and the work begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from transact.errors import DONE, Refusal


class ReachedTheWork(BaseException):
    """Nothing was wrong with the request."""


def at_the_work(device: str, timeout_minutes: float, interruption: Any, refusal: str | None) -> NoReturn:
    """In the place of `process_group`, in which the ranks tell each other what they refuse."""
    if refusal is not None:
        raise Refusal(refusal)
    raise ReachedTheWork


def up_to_the_work(request: Callable[[], int]) -> int:
    """The exit code of a request; DONE where work would begin."""
    try:
        return request()
    except ReachedTheWork:
        return DONE
