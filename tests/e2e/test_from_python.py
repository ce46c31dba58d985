"""`transact.prune`: the job of the command, from Python."""

from __future__ import annotations

import copy
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import transact
from tests.support.commands import Workplace
from tests.support.commands import transact as command
from tests.support.runs import assert_same_export
from transact.config.compose import compose_config, to_dictionary
from transact.config.run import RunConfig
from transact.config.setting import all_fields, is_dictionary
from transact.files import read_json
from transact.launch.from_python import overrides_of

SETTINGS: dict[str, Any] = {
    "data": {"sequence_length": 64, "evaluation_sequences": 16},
    "prune": {"split": "equal", "target": "transformers", "calibration_sequences": 8, "method": "norms"},
    "recover": {"tokens": 512, "batch_sequences": 4, "validation_sequences": 4},
    "engine": {"micro_batch_sequences": 2},
    "track": {"mode": "disabled"},
}


def test_no_room_takes_the_place_of_a_public_name() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(transact.__path__)}
    assert not rooms & set(transact.__all__)
    assert all(callable(getattr(transact, name)) for name in ("Result", "prune", "prune_model"))


def test_settings_become_words_of_the_command_line() -> None:
    settings = {
        "experiment": "demo",
        "engine": "gpu",
        "prune": {"method": "norms", "rounds": 2, "round_shares": [0.5, 1.0], "head_dim": None},
        "track": {"tags": ["a,b", "it's"]},
        "export": {"gguf": "f16"},
        "eval": {"texts": [{"name": "x", "files": ["y"]}]},
        "seed": 3,
    }
    assert list(overrides_of(settings)) == [
        "+experiment='demo'",
        "engine='gpu'",
        "prune/method='norms'",
        "prune.rounds=2",
        "prune.round_shares=[0.5,1.0]",
        "prune.head_dim=null",
        r"track.tags=['a,b','it\'s']",
        "export.gguf='f16'",
        "eval.texts=[{name:'x',files:['y']}]",
        "seed=3",
    ]


OWN_KEYS: dict[str, dict[str, Any]] = {
    "engine": {"deepspeed": {"steps_per_print": 5, "zero_optimization.round_robin_gradients": True}},
    "eval": {
        "tasks": {"arc_easy": 5, "my-task:v1.0,(x)": 0},
        "texts": {"law.v-2": {"source": "files", "files": ["a b.txt"]}},
    },
    "launch": {"transport": {"NCCL_DEBUG": "INFO"}, "options": {"mail-type": "END"}},
    "data": {"train.sources": {"law.v-2": {"source": "files", "files": ["a b.txt"], "weight": 1.0}}},
}


def test_every_dictionary_takes_keys_of_the_users() -> None:
    """Whatever is in a key, and whether the request has it already or not."""
    dictionaries = {name for name, _, hint in all_fields(RunConfig) if is_dictionary(hint)}
    given = {f"{group}.{name}" for group, settings in OWN_KEYS.items() for name in settings}
    assert given == {name for name in dictionaries if "*" not in name}
    first = [
        "name=x",
        "model.path=none",
        "launch=slurm",
        *overrides_of({"eval": {"tasks": {"arc_easy": 1, "piqa": 2}}}),
    ]
    first += ["data.train.source=mixture", "data.evaluation.source=python_stdlib"]
    config = to_dictionary(compose_config([*first, *overrides_of(OWN_KEYS)]))
    assert config["data"]["train"]["sources"]["law.v-2"]["files"] == ["a b.txt"]
    assert config["eval"]["tasks"] == {**OWN_KEYS["eval"]["tasks"], "piqa": 2}
    assert config["eval"]["texts"]["law.v-2"]["files"] == ["a b.txt"]
    for group, name in (("engine", "deepspeed"), ("launch", "transport"), ("launch", "options")):
        assert config[group][name] == OWN_KEYS[group][name]


def test_it_is_the_job_of_the_command(workplace: Workplace, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = copy.deepcopy(SETTINGS)
    settings["data"]["token_store"] = str(workplace.folder / "tokens")

    def call() -> transact.Result:
        texts = {"text": [workplace.train], "held_out": [workplace.heldout]}
        return transact.prune(workplace.model, tmp_path / "called", remove_fraction=0.4, **texts, **settings)

    result = call()
    assert result.summary == read_json(tmp_path / "called" / "result.json")
    assert result.export == tmp_path / "called" / "export"
    assert (result.parameters, result.perplexity) == tuple(
        result.summary["pruned"][name] for name in ("parameters", "perplexity")
    )
    assert "round_01/recover" in capfd.readouterr().out
    words = [
        *("data=local", f"data.train.files=[{workplace.train}]", f"data.evaluation.files=[{workplace.heldout}]"),
        *(f"model.path={workplace.model}", "prune.remove_fraction=0.4", "name=typed", f"output_dir={tmp_path}/typed"),
    ]
    ended = command([*words, *overrides_of(settings)])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_same_export(tmp_path / "called", tmp_path / "typed")
    settings["recover"] |= {"variant": "slow", "learning_rate": 1e-5}
    variant = call()
    assert variant.output_dir == tmp_path / "called" / "variants" / "slow"
    assert variant.summary["rounds"][0]["learning_rate"] == 1e-5 and result.summary != variant.summary
    assert variant.export.is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remove_fraction": 1.5}, r"prune\.remove_fraction=1\.5 is not allowed"),
        ({"recover": {"token": 5}}, r"recover\.token: no such setting.*recover\.tokens"),
        ({"text": ["a.txt"]}, "text and held_out are given together"),
        ({"mode": "estimate"}, "mode='estimate' is not allowed"),
        ({"launch": {"kind": "local", "wait": False}}, r"launch\.wait=false is not allowed: it must be true"),
        ({"model": "none/such/folder"}, "none/such/folder"),
        ({"prune": "explicit", "remove_fraction": 0.3}, r"it must be a dictionary, since the call sets \['remove_frac"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(
    workplace: Workplace, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        transact.prune(**({"model": workplace.model, "output_dir": tmp_path / "refused"} | settings))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "refused").exists()
