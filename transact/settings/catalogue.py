"""What settings there are: types, the defaults that conf/ gives, what they mean, and the choices of groups."""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transact.config import RunConfig
from transact.config.setting import allowed_in, dataclass_in, fields_of, is_dictionary
from transact.configuring import compose_config, conf_folder

GROUPS = ("model", "data", "prune", "recover", "engine", "eval", "export", "launch", "track", "estimate")
RUN = "run"  # the page of what belongs to no group
EXPERIMENT = "experiment"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        path: as on the command line: prune.method.ridge.
        type: as in the configuration's dataclass.
        default: as YAML gives it; None where it is null, or where it must be given.
        is_required: whether it has no default.
        description: one sentence or two.
        allowed: the values that it takes, in words; empty where the type says all.
    """

    path: str
    type: str
    default: Any
    is_required: bool
    description: str
    allowed: str

    @property
    def group(self) -> str:
        first = self.path.partition(".")[0]
        return first if first in GROUPS else RUN


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One YAML file of a group: `prune/method=norms`."""

    group: str
    name: str
    description: str


@cache
def settings() -> tuple[Setting, ...]:
    """All of them, in the order of the dataclasses; the defaults are those of a run without overrides."""
    return tuple(_settings_of(RunConfig, "", compose_config(["name=NAME"])))


def _settings_of(kind: type, prefix: str, values: Any) -> Iterator[Setting]:
    descriptions = field_descriptions(kind)
    for declared, hint in fields_of(kind):
        name = declared.name
        path = f"{prefix}{name}"
        value, is_required = _default(declared, values)
        inner = None if is_dictionary(hint) else dataclass_in(hint)
        if inner is not None:
            yield from _settings_of(inner, f"{path}.", value)
            continue
        if path == "name":
            value, is_required = None, True
        if path == "model.path":
            value = "the demo parent that ships with transact"  # not where this installation has it
        yield Setting(
            path=path,
            type=_type_name(hint),
            default=value,
            is_required=is_required,
            description=descriptions[name],
            allowed=allowed_in(declared).described(hint),
        )


def _default(declared: Field[Any], values: Any) -> tuple[Any, bool]:
    """The composed value; of a part that is null by default, that of its dataclass. And whether there is none."""
    if values is not None:
        return getattr(values, declared.name), False
    return (None, True) if declared.default is MISSING else (declared.default, False)


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join("null" if each is type(None) else _type_name(each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is not None:
        parts = ", ".join(_type_name(each) for each in typing.get_args(hint))
        return f"{typing.get_origin(hint).__name__}[{parts}]"
    return str(hint.__name__)


@cache
def field_descriptions(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass, as one line; empty where there is none."""
    module = ast.parse(Path(inspect.getsourcefile(kind) or "").read_text(encoding="utf-8"))
    body = next(node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    found: dict[str, str] = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = " ".join(_string(after).split())
    return found


def _string(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


@cache
def choices() -> tuple[Choice, ...]:
    """Of all groups, experiments included."""
    folder = conf_folder()
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        group = str(path.parent.relative_to(folder))
        if group != ".":
            found.append(Choice(group=group, name=path.stem, description=_first_comment(path)))
    return tuple(found)


def _first_comment(path: Path) -> str:
    """The first sentence of the comment at the head of a file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#") or line == "#":
            break
        lines.append(line.lstrip("# ").rstrip())
    return re.split(r"(?<=\.) (?=[A-Z-])", " ".join(lines))[0]
