"""The one kind of message that a user sees for a wrong value of a setting."""

from __future__ import annotations


def require(name: str, value: object, condition: bool, allowed: str) -> None:
    """
    Raises:
        ValueError: the field, the value given, what is allowed.
    """
    if not condition:
        raise ValueError(f"{name}={value!r} is not allowed: {allowed}")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    require(name, value, value in choices, f"it must be one of {', '.join(choices)}")


def require_one_per_round(name: str, values: list[float] | None, rounds: int) -> None:
    if values is not None:
        require(name, values, len(values) == rounds, f"one number per round is needed (prune.rounds={rounds})")
