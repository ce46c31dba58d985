"""Defaults stand in the dataclasses alone: what a file of conf/ says differs from what is composed without it."""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tests.support.commands import REPOSITORY
from transact.config.compose import conf_folder, register
from transact.config.run import RunConfig
from transact.config.setting import all_fields, defaults_of
from transact.run import main

FILES = sorted(
    str(path.relative_to(conf_folder())) for path in conf_folder().rglob("*.yaml") if path.parent.stem != "conf"
)
DECLARED = {name: declared.default for name, declared, _ in all_fields(RunConfig)}
ABSENT = object()
NULL_BY_DEFAULT = "model.architecture."  # what is not said inside it is filled in when it is checked


def composed(folder: Path, overrides: list[str]) -> DictConfig:
    register()
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config", overrides=overrides)


def chosen(file: str) -> list[str]:
    group, _, name = file.removesuffix(".yaml").rpartition("/")
    return [f"+experiment={name}"] if group == "experiment" else ["name=x", f"{group}={name}"]


def leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, value); lists and empty dictionaries are values."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def said_twice(folder: Path, file: str) -> list[str]:
    """The settings of a file that are what would be composed if it did not say them."""
    said = OmegaConf.to_container(OmegaConf.load(folder / file))
    assert isinstance(said, dict)
    defaults = said.pop("defaults", None)
    group = file.rpartition("/")[0]
    without = composed_without(folder, group, "" if defaults is None else OmegaConf.to_yaml({"defaults": defaults}))
    prefix = "" if group == "experiment" else group.replace("/", ".")
    return [name for name, value in leaves(said, prefix) if _as_it_would_be(without, name) == value]


@functools.cache
def composed_without(folder: Path, group: str, defaults: str) -> DictConfig:
    """What a file of this group would make that says nothing but which files it builds on."""
    with TemporaryDirectory() as scratch:
        copy = shutil.copytree(folder, Path(scratch) / "conf")
        header = "# @package _global_\n" if group == "experiment" else ""
        (copy / group / "nothing.yaml").write_text(header + defaults)
        return composed(copy, chosen(f"{group}/nothing.yaml"))


def _as_it_would_be(without: DictConfig, name: str) -> Any:
    parent, _, key = name.rpartition(".")
    holder = OmegaConf.select(without, parent) if parent else without
    if holder is None:  # a part that is null by default
        return DECLARED.get(name, ABSENT)
    return OmegaConf.to_container(holder).get(key, ABSENT)  # type: ignore[union-attr]


@pytest.mark.parametrize("file", FILES)
def test_no_file_repeats_what_is_composed_without_it(file: str) -> None:
    assert said_twice(conf_folder(), file) == []


@pytest.mark.parametrize(
    ("file", "line", "setting"),
    [
        ("engine/gpu.yaml", "zero_stage: 3", "engine.zero_stage"),
        ("prune/method/random.yaml", "refit: none", "prune.method.refit"),  # norms says it
        ("model/llama2_7b.yaml", "revision: null", "model.revision"),
        ("experiment/llama7b_70pct.yaml", "  rounds: 8", "prune.rounds"),  # the experiment below it says it
    ],
)
def test_a_repetition_is_found(file: str, line: str, setting: str, tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    shutil.copytree(conf_folder(), folder)
    with (folder / file).open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")
    assert said_twice(folder, file) == [setting]


def test_a_run_without_overrides_has_the_defaults_of_the_dataclasses() -> None:
    """Besides what has no default of its own: the model that ships, and the text that every Python has."""
    found = OmegaConf.to_container(composed(conf_folder(), ["name=x"]))
    assert isinstance(found, dict)
    expected = dict(leaves(defaults_of(RunConfig), ""))
    differing = {name for name, value in leaves(found, "") if expected[name] != value}
    assert differing == {"name", "model.path", "data.train.source", "data.evaluation.source", "data.evaluation.part"}


@functools.cache
def documented() -> dict[str, str]:
    """Setting -> its default as docs/config has it."""
    row = re.compile(r"^\| `([\w.]+)` \| [^|]+ \| `(.*?)` \|", re.MULTILINE)
    pages = (REPOSITORY / "docs" / "config").glob("*.md")
    return {name: default for page in pages for name, default in row.findall(page.read_text(encoding="utf-8"))}


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def flat(config: DictConfig) -> dict[str, Any]:
    """Every setting that is composed, as it is declared: what a dictionary of one's own holds is its value."""
    container = OmegaConf.to_container(config, resolve=True)
    found = {}
    for name in (name for name in DECLARED if "*" not in name):
        *groups, key = name.split(".")
        holder: Any = functools.reduce(lambda inside, group: inside and inside[group], groups, container)
        if holder is not None and (key in holder or not name.startswith(NULL_BY_DEFAULT)):
            found[name] = holder[key]
    return found


def said_by(file: str) -> set[str]:
    """The settings that a file gives, those of the files that it builds on or chooses included."""
    group = file.rpartition("/")[0]
    said = OmegaConf.to_container(OmegaConf.load(conf_folder() / file))
    assert isinstance(said, dict)
    found = set()
    for entry in said.pop("defaults", []):
        if isinstance(entry, dict):
            ((where, name),) = entry.items()
            place = where.removeprefix("override").strip()
            found |= said_by(f"{place.strip('/')}/{name}.yaml") if not place.startswith("hydra") else set()
        elif entry not in ("_self_", "schema"):
            found |= said_by(f"{group}/{entry}.yaml")
    return found | set(dict(leaves(said, "" if group in ("", "experiment") else group.replace("/", "."))))


def test_the_documented_defaults_are_the_composed_ones() -> None:
    """Of a part that is null, those of its dataclass; the model has another folder in each installation."""
    found = flat(composed(conf_folder(), ["name=NAME"]))
    null = {name for name in documented() if name.startswith(NULL_BY_DEFAULT)}
    assert found.keys() - {"model.architecture"} == documented().keys() - null
    differing = {name for name in found.keys() & documented().keys() if written(found[name]) != documented()[name]}
    assert differing == {"name", "model.path"}
    for name in null:
        assert documented()[name] == ("must be given" if DECLARED[name] is MISSING else written(DECLARED[name])), name


@pytest.mark.parametrize("group", sorted({"run", *(name.partition(".")[0] for name in DECLARED if "." in name)}))
def test_help_says_what_the_documents_say(
    group: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["transact", "--help", group])
    assert main() == 0
    told = dict(re.findall(r"^([\w.]+)  \([^;]+; (.*)\)$", capsys.readouterr().out, re.MULTILINE))
    assert told == {
        name: default
        for name, default in documented().items()
        if (name.startswith(f"{group}.") if group != "run" else "." not in name)
    }


@pytest.mark.parametrize("file", FILES)
def test_whatever_is_chosen_has_the_documented_settings_and_defaults(file: str) -> None:
    """All of them, and no others, so each can be changed on the command line; only a part that is null has no settings
    inside. A value is another one where the chosen files say it, or where those that they replace did."""
    found = flat(composed(conf_folder(), chosen(file)))
    known = documented().keys() | {"model.architecture"}
    assert found.keys() <= known
    assert all(name.startswith("model.architecture") for name in known - found.keys())
    differing = {name for name in found.keys() & documented().keys() if written(found[name]) != documented()[name]}
    told = said_by(file)
    replaced = {name for name in differing - told if found[name] == DECLARED[name]} & said_by("config.yaml")
    own = {"name", "output_dir", "model.path"}
    assert not {name for name in differing - replaced - own if not _is_said(name, told)}


def _is_said(name: str, told: set[str]) -> bool:
    """Itself, or an entry of it, as of a dictionary of one's own."""
    return any(each == name or each.startswith(f"{name}.") for each in told)


def test_the_documented_choices_are_the_files() -> None:
    pages = (REPOSITORY / "docs" / "config").glob("*.md")
    rows = [re.findall(r"^\| `\+?([\w/]+)=(\w+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE) for page in pages]
    assert sorted(f"{group}/{name}.yaml" for each in rows for group, name in each) == FILES
