"""One setting: its default, what it may be, and the one kind of message that a user sees for a wrong value."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, is_dataclass
from functools import cache
from typing import Any


def require(name: str, value: object, condition: bool, allowed: str) -> None:
    """Raise ValueError, with the field, the value given and what is allowed, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}={shown(value)} is not allowed: {allowed}")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    require(name, value, value in choices, f"it must be one of {', '.join(choices)}")


def require_one_per_round(name: str, values: list[float] | None, rounds: int) -> None:
    """Raise ValueError unless there is one value per round, or none are given."""
    if values is not None:
        require(name, values, len(values) == rounds, f"one number per round is needed (prune.rounds={rounds})")


LONGEST_PATH = 4000  # characters; systems take 4096 bytes
LONGEST_TEXT = 1000  # characters of a text that declares nothing else
MOST_ENTRIES = 1000  # of a list or a dictionary that declares nothing else
LONGEST_SHOWN = 100  # characters of a value in a message
MISSING_IN_YAML = "???"
# Characters that change the direction of text and so make a line look like another one.
REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line and paragraph separators
PLAIN = "text without line breaks and control characters"


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowed:
    """The values that a setting takes; of a list or a dictionary, each of its entries.

    Attributes:
        at_least, at_most, above, below: bounds of a number, the first two included. Every number is finite.
        choices: all that a text may be; beside a number or a flag, the words that may stand for it.
        longest: characters of a text.
        pattern: what a text looks like as a whole; `words` says so to a user.
        entries: least and largest number of entries of a list or a dictionary.
        keys: what the keys of a dictionary may be.
        has_breaks: a text may have line breaks and tabs.
        is_secret: no message shows the value.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    longest: int = LONGEST_TEXT
    pattern: str | None = None
    words: str = PLAIN
    entries: tuple[int, int] = (0, MOST_ENTRIES)
    keys: Allowed | None = None
    has_breaks: bool = False
    is_secret: bool = False

    def takes(self, value: Any) -> bool:
        """Return whether one value, or one entry of a list or a dictionary, is allowed."""
        if isinstance(value, str):
            return self._takes_text(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self._takes_number(value)
        return isinstance(value, bool) and not self.choices

    def _takes_number(self, value: float) -> bool:
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def _takes_text(self, value: str) -> bool:
        if self.choices:
            return value in self.choices
        line = value.translate(dict.fromkeys(map(ord, "\n\t"), " ")) if self.has_breaks else value
        is_plain = len(value) <= self.longest and bool(value.strip()) and is_printable(line)
        return is_plain and (self.pattern is None or re.fullmatch(self.pattern, value) is not None)

    def described(self, hint: Any) -> str:
        """Return in words what is allowed for a setting of this type; empty where the type says all."""
        kinds = scalar_types(hint)
        one = self._range() if kinds & {int, float} else "true or false" if kinds == {bool, str} else ""
        one = ", or ".join(part for part in (one, self._text() if str in kinds else "") if part)
        if typing.get_origin(_not_null(hint)) not in (list, dict):
            return one
        least, most = self.entries
        named = "" if self.keys is None else f"named by {self.keys.described(str)}"
        return ", ".join(part for part in (f"{least:,} to {most:,} entries", named, one and f"each {one}") if part)

    def _range(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"from {_number(self.at_least)} to {_number(self.at_most)}"
        named = {"above": self.above, "at least": self.at_least, "below": self.below, "at most": self.at_most}
        return " and ".join(f"{name} {_number(bound)}" for name, bound in named.items() if bound is not None)

    def _text(self) -> str:
        if self.choices:
            return f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else self.choices[0]
        return f"{self.words}, at most {self.longest:,} characters"


def setting(default: Any = MISSING, *, factory: Callable[[], Any] | None = None, **allowed: Any) -> Any:
    """Declare a field of the configuration.

    Args:
        default, factory: as those of `dataclasses.field`; neither: the setting must be given.
        allowed: as the attributes of `Allowed`.
    """
    metadata = {"allowed": Allowed(**allowed)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def allowed_in(declared: dataclasses.Field[Any]) -> Allowed:
    return typing.cast(Allowed, declared.metadata.get("allowed", Allowed()))


def check_values(kind: type, values: Mapping[Any, Any], prefix: str = "") -> None:
    """Check plain values against the declarations of a dataclass and of those inside it.

    Args:
        values: field -> value; nested dataclasses as mappings. What is absent or null is not checked.
        prefix: beginning of the names in messages, with the dot.

    Raises:
        ValueError: one line that names the setting, the value and what is allowed.
    """
    for declared, hint in fields_of(kind):
        value = values.get(declared.name)
        if value is None or value == MISSING_IN_YAML:
            continue
        name, allowed, inner = f"{prefix}{declared.name}", allowed_in(declared), dataclass_in(hint)
        if is_dictionary(hint) or inner is None:
            _check_shape(name, value, hint, allowed)
            _check_entries(name, value, allowed, hint)
        if inner is None:
            for key, each in value.items() if isinstance(value, dict) else []:
                of_entry = typing.get_args(_not_null(hint))[1]
                _check_shape(f"{name}.{key}", each, of_entry, allowed)
                if not allowed.takes(each):
                    raise _refusal(f"{name}.{key}", each, allowed, of_entry)
            entries = value if isinstance(value, list) else [] if isinstance(value, dict) else [value]
            if not all(_takes(allowed, each, scalar_types(hint)) for each in entries):
                raise _refusal(name, value, allowed, hint)
        elif isinstance(value, Mapping):  # a wrong type is not refused here
            for key, each in value.items() if is_dictionary(hint) else [("", value)]:
                if isinstance(each, Mapping):
                    check_values(inner, each, f"{name}.{key}." if key else f"{name}.")


def _takes(allowed: Allowed, value: Any, kinds: set[Any]) -> bool:
    if type(value) is bool and bool in kinds:
        return True
    # Of a single type the conversion tells what is none of it.
    return allowed.takes(value) and (len(kinds) == 1 or type(value) in kinds)


def _check_shape(name: str, value: Any, hint: Any, allowed: Allowed) -> None:
    shape = typing.get_origin(_not_null(hint))
    is_many = isinstance(value, list | dict)
    if isinstance(value, shape) if shape in (list, dict) else not is_many:
        return
    if isinstance(value, str) and "${" in value:
        return  # not resolved yet
    words = {list: "a list, as in [one,two]", dict: "names and values, as in {one: value}"}.get(shape, "a single value")
    raise ValueError(f"{name}={shown(value, allowed)} is not allowed: it takes {words}")


def _check_entries(name: str, value: Any, allowed: Allowed, hint: Any) -> None:
    if not isinstance(value, list | dict):
        return
    least, most = allowed.entries
    named_well = allowed.keys is None or not isinstance(value, dict) or all(map(allowed.keys.takes, value))
    if not (least <= len(value) <= most and named_well):
        raise _refusal(name, value, allowed, hint)


def _refusal(name: str, value: Any, allowed: Allowed, hint: Any) -> ValueError:
    is_many = isinstance(value, list | dict)
    null = ", or null" if is_optional(hint) else ""
    verb = "it takes" if is_many else "it must be"
    return ValueError(f"{name}={shown(value, allowed)} is not allowed: {verb} {allowed.described(hint)}{null}")


def shown(value: Any, allowed: Allowed | None = None) -> str:
    """Return a value for a message: as it is written in YAML, cut where it is long, and no secret.

    Args:
        allowed: what its setting allows; says whether it is a secret.
    """
    text = "(not shown)" if allowed is not None and allowed.is_secret else _as_yaml(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _as_yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_as_yaml(key)}: {_as_yaml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def is_printable(text: str) -> bool:
    """Return whether a text is one line that a terminal shows as it is, and that a file can hold."""
    return not any(unicodedata.category(each) in UNPRINTABLE or each in REORDERING for each in text)


@cache
def fields_of(kind: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """Return the fields of a dataclass with their resolved types."""
    hints = typing.get_type_hints(kind)
    return tuple((declared, hints[declared.name]) for declared in dataclasses.fields(kind))


def defaults_of(kind: type) -> dict[str, Any]:
    """Return every setting with its default as plain values, nested ones included; `???` where it must be given.

    Plain rather than typed, so that `check_values` and not Hydra refuses what is wrong, with what is allowed.
    """
    return {declared.name: _default_of(declared, hint) for declared, hint in fields_of(kind)}


def _default_of(declared: dataclasses.Field[Any], hint: Any) -> Any:
    inner = None if is_dictionary(hint) else dataclass_in(hint)
    if declared.default is not MISSING:
        return declared.default
    if inner is not None:
        return defaults_of(inner)
    return MISSING_IN_YAML if declared.default_factory is MISSING else declared.default_factory()


def all_fields(kind: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield (dotted name, field, type) of every setting, nested ones included; `*` stands for a key of the user's."""
    for declared, hint in fields_of(kind):
        inner, name = dataclass_in(hint), f"{prefix}{declared.name}"
        if inner is None or is_dictionary(hint):
            yield name, declared, hint
        if inner is not None:
            yield from all_fields(inner, f"{name}.*." if is_dictionary(hint) else f"{name}.")


def dataclass_in(hint: Any) -> type | None:
    """Return the dataclass of a nested setting, for `C`, `C | None` and `dict[str, C]`; None of any other type."""
    found = [each for each in (hint, *_arguments(hint)) if is_dataclass(each) and isinstance(each, type)]
    return found[0] if found else None


def is_dictionary(hint: Any) -> bool:
    return typing.get_origin(_not_null(hint)) is dict


def is_list(hint: Any) -> bool:
    return typing.get_origin(_not_null(hint)) is list


def is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def scalar_types(hint: Any) -> set[Any]:
    """Return the types of the value, or of a list's entries or a dictionary's values: {int} for list[int] | None."""
    arguments = _arguments(hint)
    if typing.get_origin(_not_null(hint)) is dict:
        arguments = list(typing.get_args(_not_null(hint)))[1:]
    return {each for each in arguments or [hint] if each is not type(None)}


def _arguments(hint: Any) -> list[Any]:
    """Return the types inside unions, lists and dictionaries."""
    found = []
    for each in typing.get_args(hint):
        found += _arguments(each) or [each]
    return found


def _not_null(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(each for each in typing.get_args(hint) if each is not type(None))
    return hint


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
