"""Defaults stand in the dataclasses alone: what a file of conf/ says differs from what is composed without it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from transact.config.compose import conf_folder, register
from transact.config.run import RunConfig
from transact.config.setting import all_fields, defaults_of

FILES = sorted(
    str(path.relative_to(conf_folder())) for path in conf_folder().rglob("*.yaml") if path.parent.stem != "conf"
)
DECLARED = {name: declared.default for name, declared, _ in all_fields(RunConfig)}
ABSENT = object()


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


def said_twice(folder: Path, file: str, scratch: Path) -> list[str]:
    """The settings of a file that are what would be composed if it did not say them."""
    said = OmegaConf.to_container(OmegaConf.load(folder / file))
    assert isinstance(said, dict)
    defaults = said.pop("defaults", None)
    copy = scratch / "conf"
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    header = "# @package _global_\n" if file.startswith("experiment/") else ""
    (copy / file).write_text(header + ("" if defaults is None else OmegaConf.to_yaml({"defaults": defaults})))
    without = composed(copy, chosen(file))
    prefix = "" if header else file.rpartition("/")[0].replace("/", ".")
    return [name for name, value in leaves(said, prefix) if _as_it_would_be(without, name) == value]


def _as_it_would_be(without: DictConfig, name: str) -> Any:
    parent, _, key = name.rpartition(".")
    holder = OmegaConf.select(without, parent) if parent else without
    if holder is None:  # a part that is null by default
        return DECLARED.get(name, ABSENT)
    return OmegaConf.to_container(holder).get(key, ABSENT)  # type: ignore[union-attr]


@pytest.mark.parametrize("file", FILES)
def test_no_file_repeats_what_is_composed_without_it(file: str, tmp_path: Path) -> None:
    assert said_twice(conf_folder(), file, tmp_path) == []


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
    assert said_twice(folder, file, tmp_path / "scratch") == [setting]


def test_a_run_without_overrides_has_the_defaults_of_the_dataclasses() -> None:
    """Besides what has no default of its own: the model that ships, and the text that every Python has."""
    found = OmegaConf.to_container(composed(conf_folder(), ["name=x"]))
    assert isinstance(found, dict)
    expected = dict(leaves(defaults_of(RunConfig), ""))
    differing = {name for name, value in leaves(found, "") if expected[name] != value}
    assert differing == {"name", "model.path", "data.train.source", "data.evaluation.source", "data.evaluation.part"}


@pytest.mark.parametrize("file", FILES)
def test_every_setting_can_be_changed_on_the_command_line_whatever_is_chosen(file: str) -> None:
    """Nothing is missing from what is composed; only a part that is null has no settings inside."""
    found = composed(conf_folder(), chosen(file))
    null = {"model.architecture"}
    for name in dict(leaves(defaults_of(RunConfig), "")):
        parent, _, key = name.rpartition(".")
        assert name in null or key in (OmegaConf.select(found, parent) if parent else found), name
