"""`python -m transact.run --help [NAME]`."""

from __future__ import annotations

import difflib
import textwrap

from transact.settings.catalogue import EXPERIMENT, GROUPS, RUN, Choice, Setting, choices, settings
from transact.settings.pages import TITLES, choices_of, default_text

WIDTH = 100

HEAD = """\
Prunes a LLaMA-like model: calibrate, plan, slice, recover, evaluate, in rounds; then exports it.

  python -m transact.run +experiment=NAME [group=choice ...] [group.setting=value ...]

Often used:
  mode=estimate                         says what would be done and needed; loads no weights
  model.path=FOLDER                     your own checkpoint
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
    """The page of a group, of a setting, or the first page.

    Raises:
        ValueError: there is no such name; says which are near.
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
    lines = [HEAD, "Experiments (+experiment=NAME):"]
    lines += _named(choices_of(EXPERIMENT))
    lines += ["", "Groups and their choices (group=choice):"]
    for group in sorted({each.group for each in choices()} - {EXPERIMENT}):
        lines.append(f"  {group:16} {', '.join(each.name for each in choices() if each.group == group)}")
    return "\n".join([*lines, "", TAIL])


def is_setting(name: str) -> bool:
    """Also an entry of a setting that is a dictionary: eval.texts.notes."""
    return any(each.path == name or _holds(each, name) for each in settings())


def _holds(setting: Setting, name: str) -> bool:
    return setting.type.startswith("dict") and name.rpartition(".")[0] == setting.path


def nearest(name: str) -> str:
    """For the end of a message: the settings whose names are like this one; empty if none is."""
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
