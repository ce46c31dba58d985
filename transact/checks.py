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


def require_positive(section: str, config: object, *fields: str) -> None:
    for name in fields:
        value = getattr(config, name)
        require(f"{section}.{name}", value, value > 0, "it must be above 0")


def require_one_per_round(name: str, values: list[float] | None, rounds: int) -> None:
    if values is not None:
        require(name, values, len(values) == rounds, f"one number per round is needed (prune.rounds={rounds})")
        require(name, values, min(values) > 0, "every number must be above 0")


def require_at_least(section: str, config: object, minimum: float, *fields: str) -> None:
    for name in fields:
        value = getattr(config, name)
        require(f"{section}.{name}", value, value >= minimum, f"it must be at least {minimum}")
