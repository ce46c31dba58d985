"""Requests of every kind, made up by the hundred: one clear line and exit code 2, or a configuration that runs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import resource
import shutil
import sys
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks.quality import compose_config
from tests.support.commands import Workplace, transact, transact_as_users_do
from tests.support.judged import at_the_work, up_to_the_work
from transact.config.compose import to_dictionary, typed_config
from transact.config.run import RunConfig
from transact.config.setting import all_fields, allowed_in, is_dictionary, is_list, is_printable, scalar_types
from transact.errors import DONE, one_line
from transact.estimate.contents import forecast
from transact.launch import worker
from transact.launch.worker import work
from transact.run import main
from transact.runs.run_record import LAYOUT
from transact.stages.preflight import check


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,  # the same requests in every run of the tests
        phases=[Phase.generate],  # a failing request is told as it is: making it smaller takes minutes
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# Anything that an accepted request would leave behind is in these two.
PLACES = ("name", "output_dir", "data.token_store")

CONTROL = ["'a\rb'", "'a\\nb'", "'\x1b[2J'", "'\x9b31m'", "'\ud800'", "'\u2028'", "'\u202egnp'", "a%j", "'x\x7f'"]
NUMBERS = ["0", "-1", "1", "2", "3", "7", "0.5", "1e-9", "1e400", "-0.0", "nan", "inf", "-inf", "9" * 40, "1e", "0x10"]
NUMBERS += ["1e-320", "1e308", str(2**64), str(10**9)]
WORDS = [
    "",
    "''",
    "many",
    "null",
    "true",
    "~",
    "no",
    "Größe",
    "日本語",
    "🙂",
    "a b",
    "../..",
    "/",
    "/proc/self/mem",
    "-",
    "*",
]
SHAPES = [
    "[]",
    "[1,-1]",
    "[1,2,3]",
    "[nan]",
    "{}",
    "{a:1}",
    "[[1]]",
    "${name}",
    "${nothing}",
    "${oc.env:HOME}",
    "???",
    "a" * 5000,
]
UNQUOTED = st.sampled_from([*NUMBERS, *WORDS, *SHAPES, *CONTROL])
QUOTED = st.text(max_size=12).map(lambda text: "'" + text.replace("\\", "").replace("'", "") + "'")
VALUES = st.one_of(UNQUOTED, st.integers().map(str), st.floats().map(repr), QUOTED)


def setting_names(config: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every setting by its dotted name, and every section."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kinds = [
            kind for kind in (*typing.get_args(hints[field.name]), hints[field.name]) if dataclasses.is_dataclass(kind)
        ]
        yield prefix + field.name
        for kind in kinds:
            yield from setting_names(kind, f"{prefix}{field.name}.")


NAMES = sorted(set(setting_names()) - set(PLACES) - {"launch.kind", "launch.processes", "mode"})


FIELDS = {name: (allowed_in(declared), hint) for name, declared, hint in all_fields(RunConfig)}
RANGES = [name for name, (_, hint) in FIELDS.items() if scalar_types(hint) & {int, float} and "*" not in name]
DIMENSIONS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}


@pytest.fixture
def judged(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[Callable[[], int]], int]:
    """Checks how a request ends in this process, up to the point where work would begin. Returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "process_group", at_the_work)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    def judge(request: Callable[[], int]) -> int:
        before = sorted(workplace.folder.rglob("*"))
        code = up_to_the_work(request)
        output = capsys.readouterr()
        assert sorted(workplace.folder.rglob("*")) == before
        assert not list(tmp_path.glob("outputs"))
        if code == 2:
            assert output.err.startswith("error: "), output.err
            assert output.err.count("\n") == 1, output.err
            assert "Traceback" not in output.err
        else:
            assert code == DONE
            assert output.err == ""
        return code

    return judge


@pytest.fixture
def request_with(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, judged: Callable[[Callable[[], int]], int]
) -> Callable[..., int]:
    """A command line with these overrides."""

    def run(*overrides: str) -> int:
        monkeypatch.setattr(sys, "argv", ["transact", *workplace.overrides("any"), *overrides])
        return judged(main)

    return run


@pytest.fixture
def request_for(workplace: Workplace, judged: Callable[[Callable[[], int]], int]) -> Callable[[Path], int]:
    """A sound configuration, composed once, with another model folder."""
    config = compose_config(workplace.overrides("any"))

    def run(folder: Path) -> int:
        changed = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(folder)))
        return judged(lambda: work(changed))

    return run


@examples(70)
@given(name=st.sampled_from(NAMES), value=VALUES, mark=st.sampled_from(["", "", "", "+", "++", "~"]))
def test_any_value_of_any_setting(request_with: Callable[..., int], name: str, value: str, mark: str) -> None:
    request_with(f"{mark}{name}={value}" if mark != "~" else f"~{name}")


def ends(name: str) -> list[float]:
    """The least and the largest value that a setting takes."""
    allowed, hint = FIELDS[name]
    low = allowed.at_least if allowed.above is None else math.nextafter(allowed.above, math.inf)
    high = allowed.at_most if allowed.below is None else math.nextafter(allowed.below, -math.inf)
    assert low is not None
    assert high is not None
    return [int(low), int(high)] if int in scalar_types(hint) else [float(low), float(high)]


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    return to_dictionary(compose_config(["name=ends", "prune.split=equal", "estimate.accelerator=h100"]))


@pytest.mark.parametrize("name", RANGES)
def test_the_ends_of_every_range_cost_nothing(
    name: str, sound: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever is checked and planned of a request that is allowed by itself takes seconds, and may be refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for value in ends(name):
        config = copy.deepcopy(sound)
        if name.startswith("model.architecture."):
            config["mode"], config["model"] = (
                "estimate",
                config["model"] | {"path": "no/where", "architecture": DIMENSIONS},
            )
            config["model"]["architecture"] = dict(DIMENSIONS)
        *groups, last = name.split(".")
        place = functools.reduce(lambda inside, group: inside[group], groups, config)
        hint = FIELDS[name][1]
        place[last] = {"own": value} if is_dictionary(hint) else [value] if is_list(hint) else value
        since = time.process_time()
        try:
            typed = typed_config(config)
        except ValueError as error:
            assert is_printable(one_line(error))  # noqa: PT017
            continue
        for use in (lambda each: check(each, 1), forecast):
            try:
                use(copy.deepcopy(typed))
            except ValueError as error:
                assert is_printable(one_line(error))  # noqa: PT017
            assert time.process_time() - since < 10
    assert not list(tmp_path.iterdir())


PROCESSES: list[tuple[dict[str, str], list[str], str]] = [
    ({"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, [], "below WORLD_SIZE=2"),
    ({"WORLD_SIZE": "abc"}, ["mode=estimate"], "WORLD_SIZE='abc'"),
    ({}, ["-m", "hydra/launcher=joblib", "seed=1,2"], "launch=local"),
    ({}, ["name='a\x1b[2J\rb'"], "name='a\\x1b[2J\\rb' is not allowed"),
    ({}, ["-m", "prune.rounds=range(1,1000000000)"], "a sweep of 999,999,999 points"),
]


@pytest.mark.parametrize(("variables", "arguments", "named"), PROCESSES)
def test_processes_are_refused_in_seconds(
    workplace: Workplace, variables: dict[str, str], arguments: list[str], named: str
) -> None:
    before, since = sorted(workplace.folder.rglob("*")), children_seconds()
    ended = transact_as_users_do([*workplace.overrides("any"), *arguments], variables=variables)
    assert children_seconds() - since < 10
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: ")
    assert named in ended.stderr
    assert sorted(workplace.folder.rglob("*")) == before


@pytest.mark.parametrize("there", [[], ["run"], ["run", "run/estimate.json", "run/estimate.txt"]])
def test_what_only_the_ranks_refuse_leaves_nothing(workplace: Workplace, tmp_path: Path, there: list[str]) -> None:
    """Neither a record nor logs, in a folder that was there before or not; the next request may have the name."""
    folder, ranks = tmp_path / "outputs" / "run", ["launch=local", "launch.processes=2"]
    for name in there:
        path = folder.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text(f'{{"layout": {LAYOUT}}}')
        else:
            path.mkdir()
    before = sorted(tmp_path.rglob("*"))
    overrides = [*workplace.overrides("any"), *ranks, f"output_dir={folder}", "engine.device=auto"]
    ended = transact_as_users_do([*overrides, "engine.kernels=liger"])
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "engine.kernels='liger' is not allowed: torch sees no GPU here" in ended.stdout + ended.stderr
    assert sorted(tmp_path.rglob("*")) == before


def children_seconds() -> float:
    """Of processor time: a busy machine makes none longer."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@examples(20)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_any_words(request_with: Callable[..., int], words: list[str]) -> None:
    """Words that are no settings at all; none begins with a dash, which argparse answers with its usage."""
    request_with(*(word for word in words if not word.startswith("-") and "\0" not in word))


VALID = {
    "prune.remove_fraction": ["0.1", "0.3", "0.45"],
    "prune.rounds": ["1", "2"],
    "prune.method.values": ["svd", "pca", "norm", "taylor"],
    "prune.method.pair_gains": ["auto", "none", "attention"],
    "prune.method.channels": ["obs", "norm", "random"],
    "prune.method.pair_score": ["norm_product", "token_product", "magnitude"],
    "prune.method.refit": ["none", "least_squares", "sequential"],
    "prune.method.ridge_unit": ["mean", "median"],
    "recover.objective": ["cross_entropy", "distillation", "mixed"],
    "engine.zero_stage": ["0", "1", "2", "3"],
    "engine.dtype": ["float32", "bfloat16"],
    "engine.attention": ["eager", "sdpa"],
    "recover.tokens": ["0", "4096"],
}


@examples(10)
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALID.items()}))
def test_valid_requests_are_accepted(request_with: Callable[..., int], chosen: dict[str, str]) -> None:
    assert request_with(*(f"{name}={value}" for name, value in chosen.items())) == DONE


@examples(2)
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALID.items()}))
def test_valid_requests_run(workplace: Workplace, chosen: dict[str, str]) -> None:
    name = "valid_" + "_".join(value.replace(".", "") for value in chosen.values())
    shutil.rmtree(workplace.folder / name, ignore_errors=True)
    ended = transact([*workplace.overrides(name), *(f"{setting}={value}" for setting, value in chosen.items())])
    assert ended.returncode == 0, ended.stderr
    assert (workplace.folder / name / "export" / "config.json").is_file()


CONFIG_NAMES = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings", "rope_parameters", "rope_theta", "model_type", "tie_word_embeddings",
    "attention_bias", "partial_rotary_factor", "quantization_config", "auto_map", "hidden_act", "rms_norm_eps",
]  # fmt: skip
JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 1000),
    st.sampled_from([10**30, 1.5, -0.5, float("nan"), "", "64", "gelu", [], [64], {}, {"rope_type": "linear"}]),
    st.fixed_dictionaries({"AutoModelForCausalLM": st.just("evil.Model")}),
)


@pytest.fixture
def model(workplace: Workplace, tmp_path: Path) -> Path:
    """A copy with code beside it that notes when it is run."""
    folder = Path(shutil.copytree(workplace.model, tmp_path / "model"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Model: pass\n")
    return folder


@examples(120)
@given(name=st.sampled_from(CONFIG_NAMES), value=JSON_VALUES)
def test_any_model_config(
    request_for: Callable[[Path], int], workplace: Workplace, model: Path, name: str, value: Any
) -> None:
    original = json.loads((workplace.model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(original | {name: value}))
    request_for(model)
    assert not (model.parent / "executed").exists()


@examples(60)
@given(data=st.data())
def test_any_damage_to_the_weights(
    request_for: Callable[[Path], int], workplace: Workplace, model: Path, data: st.DataObject
) -> None:
    shards = sorted(workplace.model.glob("model-*.safetensors"))
    shard = data.draw(st.sampled_from(shards))
    damage = data.draw(st.sampled_from(["truncated", "header", "shape", "dtype", "missing", "extra", "index"]))
    target = model / shard.name
    index = model / "model.safetensors.index.json"
    tensors = load_file(shard)
    name = data.draw(st.sampled_from(sorted(tensors)))
    try:
        if damage == "truncated":
            content = shard.read_bytes()
            target.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        elif damage == "header":
            content = bytearray(shard.read_bytes())
            content[data.draw(st.integers(0, 60))] ^= data.draw(st.integers(1, 255))
            target.write_bytes(content)
        elif damage == "shape":
            save_file(tensors | {name: tensors[name].reshape(1, -1)[:, :-1].contiguous()}, target)
        elif damage == "dtype":
            save_file(tensors | {name: tensors[name].to(data.draw(st.sampled_from(_other_dtypes())))}, target)
        elif damage == "missing":
            save_file({other: tensor for other, tensor in tensors.items() if other != name}, target)
        elif damage == "extra":
            save_file(tensors | {data.draw(st.text(max_size=8)): tensors[name].clone()}, target)
        else:
            outside = data.draw(
                st.sampled_from(["../x.safetensors", "/etc/passwd", "", "a/b.safetensors", 5, None, []])
            )
            described = json.loads(index.read_text())
            described["weight_map"][name] = outside
            index.write_text(json.dumps(described))
        code = request_for(model)
        # A changed bit in the header may fall into its padding or a name's case; all else must be seen.
        assert code == 2 or damage == "header"
    finally:
        shutil.copyfile(shard, target)
        shutil.copyfile(workplace.model / index.name, index)


def _other_dtypes() -> list[Any]:
    import torch

    return [torch.int8, torch.bool, torch.int64]
