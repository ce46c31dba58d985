"""Every setting explained, from the fields that declare it: `--help`, and the pages of docs/config."""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transact.config.compose import compose_config, conf_folder
from transact.config.run import RunConfig
from transact.config.setting import allowed_in, dataclass_in, fields_of, is_dictionary
from transact.errors import DONE, leave
from transact.files import write_text

GROUPS = ("model", "data", "prune", "recover", "engine", "eval", "export", "launch", "track", "estimate")
RUN = "run"  # the page of what belongs to no group
EXPERIMENT = "experiment"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting, as help and docs/config explain it.

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
        """Group whose page explains the setting; RUN where it belongs to none."""
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
    """Return all settings in the order of the dataclasses; the defaults are those of a run without overrides."""
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
            value = "the demo parent that ships with transact"  # its path depends on the installation
        yield Setting(
            path=path,
            type=_type_name(hint),
            default=value,
            is_required=is_required,
            description=descriptions[name],
            allowed=allowed_in(declared).described(hint),
        )


def _default(declared: Field[Any], values: Any) -> tuple[Any, bool]:
    """Return the default of a setting, and whether it has none.

    That is the composed value, or where the part that it belongs to is null the default of its dataclass.
    """
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
    """Return the string below each field of a dataclass and its bases, as one line; empty where there is none."""
    found = {
        name: text for base in kind.__bases__ if is_dataclass(base) for name, text in field_descriptions(base).items()
    }
    module = ast.parse(Path(inspect.getsourcefile(kind) or "").read_text(encoding="utf-8"))
    body = next(node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
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
    """Return the choices of all groups, experiments included."""
    folder = conf_folder()
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        group = str(path.parent.relative_to(folder))
        if group != ".":
            found.append(Choice(group=group, name=path.stem, description=_first_comment(path)))
    return tuple(found)


def _first_comment(path: Path) -> str:
    """Return the first sentence of the comment at the head of a file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#") or line == "#":
            break
        lines.append(line.lstrip("# ").rstrip())
    return re.split(r"(?<=\.) (?=[A-Z-])", " ".join(lines))[0]


HEAD = "<!-- Written by `make docs` from transact/config and conf/. Change those. -->\n"
TITLES = {
    RUN: "The run as a whole",
    "model": "model: which model is pruned",
    "data": "data: the text",
    "prune": "prune: what is cut, how much, and how it is chosen",
    "recover": "recover: continued pretraining after each cut",
    "engine": "engine: how the work is spread and computed",
    "eval": "eval: what is measured of the parent and the final model",
    "export": "export: what is written besides the folder for transformers",
    "launch": "launch: where the processes come from",
    "estimate": "estimate: what mode=estimate assumes of the machines",
    "track": "track: where figures go besides metrics.jsonl",
}


def pages() -> dict[str, str]:
    """Return the pages of docs/config: file name -> contents."""
    found = {f"{group}.md": _page(group) for group in (RUN, *GROUPS)}
    return {"README.md": _index(), **found}


def default_text(setting: Setting) -> str:
    if setting.is_required:
        return "must be given"
    value = setting.default
    return str(value) if isinstance(value, str) else json.dumps(value)


def choices_of(group: str) -> list[Choice]:
    """Return the choices of a group and of the groups inside it: prune, prune/method."""
    return [each for each in choices() if each.group == group or each.group.startswith(f"{group}/")]


def _index() -> str:
    lines = [HEAD, "# Settings\n"]
    lines += ["Given on the command line as `group=choice` and `group.setting=value`, for example"]
    lines += [
        "`recover=billion_tokens recover.learning_rate=5e-5`; `+experiment=NAME` overlays an experiment. The same text:"
    ]
    lines += ["`python -m transact.run --help`, `--help prune`, `--help prune.rounds`.\n"]
    lines += [f"- [{TITLES[group]}]({group}.md)" for group in (RUN, *GROUPS)]
    lines += ["\n## Experiments\n", *_choice_table(choices_of(EXPERIMENT))]
    return "\n".join(lines) + "\n"


def _page(group: str) -> str:
    lines = [HEAD, f"# {TITLES[group]}\n"]
    given = choices_of(group)
    if given:
        lines += ["## Choices\n", *_choice_table(given), "", "## Settings\n"]
    lines += ["| setting | type | default | allowed | what |", "|---|---|---|---|---|"]
    for each in (each for each in settings() if each.group == group):
        allowed, what = (text.replace("|", "\\|") for text in (each.allowed, each.description))
        lines.append(f"| `{each.path}` | {each.type} | `{default_text(each)}` | {allowed} | {what} |")
    return "\n".join(lines) + "\n"


def _choice_table(given: list[Choice]) -> list[str]:
    rows = [f"| `{_asked(each)}` | {each.description} |" for each in given]
    return ["| choice | what |", "|---|---|", *rows]


def _asked(choice: Choice) -> str:
    return f"{'+' if choice.group == EXPERIMENT else ''}{choice.group}={choice.name}"


WIDTH = 100

HELP_HEAD = """\
Prunes a LLaMA-like model: calibrate, select, slice, recover, evaluate, in rounds; then exports it.

  python -m transact.run +experiment=NAME [group=choice ...] [group.setting=value ...]

Often used:
  mode=estimate                         says what would be done and needed; loads no weights
  model.path=FOLDER                     your own model
  prune.remove_fraction=0.5             how much to remove, of all parameters
  launch=local launch.processes=2       ranks on this machine; under torchrun or srun: none of it
  launch=slurm                          a batch job, queued again until it is done
  -m prune.remove_fraction=0.3,0.5      a sweep: one job a value
The same command goes on with a run that ended early.
"""
TAIL = """\
More: --help GROUP (prune), --help SETTING (prune.rounds); docs/config/ has the same as pages.
--cfg job prints the composed configuration; --hydra-help explains Hydra's own flags.
"""


def help_on(name: str | None) -> str:
    """Return the page of a group or of a setting, or the first page where no name is given.

    Raises:
        ValueError: there is no such name; the message names similar ones.
    """
    if name is None:
        return first_page()
    if name in (RUN, EXPERIMENT, *GROUPS) or choices_of(name):
        return _group(name)
    found = [each for each in settings() if each.path == name or each.path.startswith(f"{name}.")]
    if found:
        return "\n".join(_described(each) for each in found)
    raise ValueError(f"--help {name}: no such group or setting{nearest(name)}")


def first_page() -> str:
    lines = [HELP_HEAD, "Experiments (+experiment=NAME):"]
    lines += _named(choices_of(EXPERIMENT))
    lines += ["", "Groups and their choices (group=choice):"]
    for group in sorted({each.group for each in choices()} - {EXPERIMENT}):
        lines.append(f"  {group:16} {', '.join(each.name for each in choices() if each.group == group)}")
    return "\n".join([*lines, "", TAIL])


def is_setting(name: str) -> bool:
    """Return whether there is such a setting, or such an entry of a dictionary setting (eval.texts.notes)."""
    return any(each.path == name or _holds(each, name) for each in settings())


def _holds(setting: Setting, name: str) -> bool:
    return setting.type.startswith("dict") and name.rpartition(".")[0] == setting.path


def nearest(name: str) -> str:
    """Return the end of a message that names the settings whose names are like this one; empty if none is."""
    paths = [each.path for each in settings()]
    close = difflib.get_close_matches(name, paths, n=3, cutoff=0.6)
    # A name given without its group: ridge for prune.method.ridge.
    close += [path for path in paths if path.rpartition(".")[2] == name.rpartition(".")[2] and path not in close]
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""


def _group(name: str) -> str:
    lines = [TITLES.get(name, name), ""]
    given = choices_of(name)
    if given:
        lines += ["Choices:", *_named(given), ""]
    lines += [_described(each) for each in settings() if each.group == name]
    return "\n".join(lines)


def _named(given: list[Choice]) -> list[str]:
    lines = []
    for each in given:
        name = each.name if each.group == EXPERIMENT else f"{each.group}={each.name}"
        lines += textwrap.wrap(
            f"{name:28} {each.description}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * 31,
            drop_whitespace=True,
        )
    return lines


def _described(setting: Setting) -> str:
    head = f"{setting.path}  ({setting.type}; {default_text(setting)})"
    texts = [setting.description, f"Allowed: {setting.allowed}." if setting.allowed else ""]
    wrapped = (textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ") for text in texts)
    return "\n".join([head, *(line for lines in wrapped for line in lines)])


def main(arguments: list[str] | None = None) -> int:
    """Print all settings, or write the pages of docs/config, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m transact.config.help", description=__doc__)
    parser.add_argument("--write", metavar="FOLDER", type=Path, help="write a page per group: docs/config")
    folder = parser.parse_args(arguments).write
    if folder is None:
        for each in settings():
            print(
                f"{each.path}  ({each.type}; {default_text(each)})\n    {each.description}\n    Allowed: {each.allowed}"
            )
        return DONE
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        write_text(folder / name, text)
    return DONE


if __name__ == "__main__":
    leave(main())
