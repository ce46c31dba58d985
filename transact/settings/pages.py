"""docs/config/: a page per group of settings, made from the dataclasses and from conf/."""

from __future__ import annotations

import json

from transact.settings.catalogue import EXPERIMENT, GROUPS, RUN, Choice, Setting, choices, settings

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
    """File name -> contents."""
    found = {f"{group}.md": _page(group) for group in (RUN, *GROUPS)}
    return {"README.md": _index(), **found}


def default_text(setting: Setting) -> str:
    if setting.is_required:
        return "must be given"
    value = setting.default
    return str(value) if isinstance(value, str) else json.dumps(value)


def choices_of(group: str) -> list[Choice]:
    """Those of the group and of the groups inside it: prune, prune/method."""
    return [each for each in choices() if each.group == group or each.group.startswith(f"{group}/")]


def _index() -> str:
    lines = [HEAD, "# Settings\n"]
    lines += ["Given on the command line as `group=choice` and `group.setting=value`, for example"]
    lines += ["`recover=paper recover.learning_rate=5e-5`; `+experiment=NAME` overlays an experiment. The same text:"]
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
