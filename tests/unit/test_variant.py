"""A variant keeps every stage that its settings do not change, and is refused where it would need another cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY
from tests.support.configs import compose_config
from transact.config.compose import to_yaml
from transact.config.run import RunConfig
from transact.estimate.contents import forecast
from transact.estimate.text import text
from transact.files import read_json, write_json, write_text
from transact.geometry import Geometry
from transact.rounds import outline
from transact.runs.run_record import LAYOUT
from transact.stages.preflight import check_same_run
from transact.stages.variant import Cut, find_cut, kept_stages

PARENT = Geometry(
    hidden_size=192,
    num_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=640,
    vocab_size=2048,
    tied_embeddings=True,
)
ROUNDS = ["prune.rounds=3", "prune.split=equal", "recover.learning_rate=1e-3"]
DEMO_PARENT = REPOSITORY / "transact" / "assets" / "demo_parent"
STAGE = {"files": {}, "seconds": 1.0, "metrics_position": 0}
BEFORE_FIRST = ["round_00/evaluate", "round_01/calibrate", "round_01/select", "round_01/slice"]


def composed(folder: Path, *settings: str, variant: str | None = None) -> RunConfig:
    """As the command makes it: a variant has its folder below the run's."""
    place = folder if variant is None else folder / "variants" / variant
    given = [] if variant is None else [f"recover.variant={variant}"]
    config = compose_config(["name=run", "data.sequence_length=256", *given, *settings])
    return replace(config, output_dir=str(place))


def stage_names(config: RunConfig) -> list[str]:
    return [stage.name for stage in outline(config, PARENT).stages]


def kept(first: RunConfig, config: RunConfig) -> list[str]:
    return kept_stages(first, config, outline(config, PARENT))


def cut_for(config: RunConfig) -> Cut:
    return find_cut(config, outline(config, PARENT))


def written(folder: Path, *settings: str, finished: int | None = None) -> RunConfig:
    """A run's records, with its first stages finished."""
    config = composed(folder, *settings)
    names = stage_names(config)[:finished]
    write_text(folder / "config.yaml", to_yaml(config))
    write_json(
        folder / "run.json",
        {"layout": LAYOUT, "run_id": "f00d", "state": "done", "restarts": 0} | {"stages": dict.fromkeys(names, STAGE)},
    )
    return config


@pytest.mark.parametrize(
    "changed",
    [
        "recover.learning_rate=1e-4",
        "recover.learning_rate=null",
        "recover.learning_rates=[1e-4,1e-3,1e-3]",
        "recover.tokens=1048576",
        "recover.tokens=0",
        "recover.token_shares=[1,2,3]",
        "recover.objective=cross_entropy",
        "recover.batch_sequences=32",
        "recover.min_warmup_steps=0",
        "recover.weight_decay=0.1",
        "recover.validations=1",
    ],
)
def test_what_comes_before_the_first_recovery_is_kept(tmp_path: Path, changed: str) -> None:
    first = composed(tmp_path, *ROUNDS)
    assert kept(first, composed(tmp_path, *ROUNDS, changed, variant="v")) == BEFORE_FIRST


@pytest.mark.parametrize(("rates", "round_"), [("[1e-3,1e-4,1e-3]", 2), ("[1e-3,1e-3,1e-4]", 3)])
def test_rounds_before_the_first_that_differs_are_kept_whole(tmp_path: Path, rates: str, round_: int) -> None:
    first = composed(tmp_path, *ROUNDS)
    names = kept(first, composed(tmp_path, *ROUNDS, f"recover.learning_rates={rates}", variant="v"))
    assert names[-1] == f"round_{round_:02d}/slice"
    assert f"round_{round_ - 1:02d}/recover" in names and f"round_{round_ - 1:02d}/evaluate" in names


def test_a_run_without_recovery_has_a_cut_to_recover(tmp_path: Path) -> None:
    written(tmp_path, *ROUNDS, "recover.tokens=0")
    cut = cut_for(composed(tmp_path, *ROUNDS, variant="v"))
    assert list(cut.stages) == BEFORE_FIRST
    assert cut.run == tmp_path


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ([], "asks for the recovery that the run has already"),
        (["recover.max_skipped_steps=3"], "asks for the recovery that the run has already"),
        (["prune.remove_fraction=0.3", "recover.learning_rate=1e-4"], "prune.remove_fraction: 0.5 -> 0.3"),
        (["recover.validation_sequences=8"], "recover.validation_sequences: 32 -> 8"),
        (["seed=1", "recover.tokens=0"], "seed: 0 -> 1"),
        (["prune.method.ridge=0.1", "recover.tokens=0"], "prune.method.ridge"),
        (["data.sequence_length=128"], "data.sequence_length"),
    ],
)
def test_another_cut_or_none_at_all_is_refused(tmp_path: Path, changed: list[str], told: str) -> None:
    written(tmp_path, *ROUNDS)
    with pytest.raises(ValueError, match=r"recover\.variant='v'") as refusal:
        cut_for(composed(tmp_path, *ROUNDS, *changed, variant="v"))
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_cut_that_is_not_there_yet_is_refused(tmp_path: Path) -> None:
    config = composed(tmp_path, *ROUNDS, "recover.tokens=0", variant="v")
    with pytest.raises(ValueError, match="holds no run whose cut"):
        cut_for(config)
    written(tmp_path, *ROUNDS, finished=3)
    with pytest.raises(ValueError, match="has not finished round_01/select yet"):
        cut_for(config)


@pytest.mark.parametrize(
    ("changed", "is_offered"),
    [
        (["recover.learning_rate=1e-4"], True),
        (["recover.learning_rate=1e-4", "recover.tokens=0"], True),
        (["recover.validation_sequences=8"], False),
        (["recover.learning_rate=1e-4", "prune.rounds=2"], False),
        (["seed=1"], False),
    ],
)
def test_who_asks_for_another_recovery_of_a_run_hears_how(tmp_path: Path, changed: list[str], is_offered: bool) -> None:
    written(tmp_path, *ROUNDS)
    with pytest.raises(ValueError, match="holds a run of another configuration") as refusal:
        check_same_run(composed(tmp_path, *ROUNDS, *changed))
    assert ("recover.variant=A_NAME" in str(refusal.value)) == is_offered


def test_a_run_goes_on_where_its_model_and_the_tokenizer_of_its_tokens_have_moved(tmp_path: Path) -> None:
    """The record identifies the model by its content, and the tokenizer of tokens is compared with the model's."""
    tokens = ["data.train.source=tokens", "data.train.files=[/text/a.npy]"]
    written(tmp_path, *tokens, "model.path=/old", "data.train.tokenizer=/old")
    moved = composed(tmp_path, *tokens, "model.path=/new", "data.train.tokenizer=/new")
    with pytest.raises(ValueError, match="another configuration"):
        check_same_run(moved)
    parent = {"files": {}, "path": "/old", "hub_id": None, "revision": None, "commit": None}
    write_json(tmp_path / "run.json", read_json(tmp_path / "run.json") | {"parent": parent})
    check_same_run(moved)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b", "", "x" * 61, "a\\b", "50%"])
def test_a_name_that_is_no_folders_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"recover\.variant"):
        compose_config(["name=run", f"recover.variant='{name}'"])


@pytest.mark.parametrize(
    ("setting", "next_stage", "most"),
    [
        ("recover.learning_rate=1e-4", "round_01/recover", 1.0),
        ("recover.learning_rates=[1e-3,1e-3,1e-4]", "round_03/recover", 0.6),
    ],
)
@pytest.mark.parametrize("is_begun", [False, True])
def test_its_estimate_counts_what_is_left_to_do(
    tmp_path: Path, setting: str, next_stage: str, most: float, is_begun: bool
) -> None:
    model = [f"model.path={DEMO_PARENT}", *ROUNDS, "estimate.accelerator=h100", "keep_rounds=all"]
    first = written(tmp_path, *model)
    whole = forecast(first)
    config = composed(tmp_path, *model, setting, "mode=estimate", variant="v")
    if is_begun:
        cut = cut_for(composed(tmp_path, *model, setting, variant="v"))
        record = {"layout": LAYOUT, "run_id": "beef", "state": "done", "restarts": 0, "stages": {}}
        write_json(tmp_path / "variants/v/run.json", record | {"cut": {"stages": list(cut.stages)}})
        (tmp_path / "config.yaml").unlink()  # its own record says what it took over
    found = forecast(config)
    assert found["stages"][0] == next_stage and found["taken_over"] + found["stages"] == stage_names(first)
    assert whole["taken_over"] == [] and whole["stages"] == stage_names(first)
    assert all(found["flops"][kind] <= whole["flops"][kind] for kind in found["flops"])
    share = sum(found["flops"].values()) / sum(whole["flops"].values())
    assert 0 < share < most
    computing = [
        each["duration"]["hours"]["all"] - each["duration"]["input_output_hours"]["all"] for each in (found, whole)
    ]
    assert computing[0] == pytest.approx(share * computing[1], abs=1e-5)
    moments = [each["stage"] for each in found["memory"]["moments"]]
    assert moments[0] == next_stage and set(moments) <= set(found["stages"])
    assert found["memory"]["peak_gib"] <= whole["memory"]["peak_gib"]
    sizes = {f"round_{each['round']:02d}": each["parameters"] for each in whole["rounds"]}
    done = [each.partition("/")[0] for each in found["taken_over"] if each.endswith(("/slice", "/recover"))]
    kept, all_of_it = (each["disk_bytes"]["sliced_and_recovered"] for each in (found, whole))
    assert kept / all_of_it == pytest.approx(1 - sum(sizes[name] for name in done) / (2 * sum(sizes.values())))
    assert found["disk_bytes"]["peak"] < whole["disk_bytes"]["peak"]
    assert "taken over from the run whose cut" in text(found) and "taken over" not in text(whole)


def test_an_estimate_of_a_variant_without_a_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run whose cut"):
        forecast(composed(tmp_path, f"model.path={DEMO_PARENT}", *ROUNDS, "mode=estimate", variant="v"))


def test_an_estimate_of_a_variant_that_trains_nothing_is_of_its_evaluation(tmp_path: Path) -> None:
    """Neither a calibration nor a recovery is left to do."""
    model = [f"model.path={DEMO_PARENT}", "prune.rounds=1", "prune.split=equal"]
    written(tmp_path, *model)
    found = forecast(composed(tmp_path, *model, "recover.tokens=0", "mode=estimate", variant="v"))
    assert [each["stage"] for each in found["memory"]["moments"]] == ["round_01/evaluate"]
    assert found["calibration"]["sequences"] == 0 and "calibration:" not in text(found)
    assert found["disk_bytes"]["sliced_and_recovered"] == 0 and found["disk_bytes"]["export"] > 0


def test_a_variant_of_a_round_whose_model_was_removed_is_refused(tmp_path: Path) -> None:
    """By keep_rounds=last; the last round's model is there, and can be recovered again."""
    first = written(tmp_path, *ROUNDS)
    record = read_json(tmp_path / "run.json")
    for number in (1, 2):
        record["stages"][f"round_0{number}/slice"]["removed"] = {"config.json": {"size": 1, "sha256": "beef"}}
    write_json(tmp_path / "run.json", record)
    assert first.keep_rounds == "last"
    last = "recover.learning_rates=[1e-3,1e-3,1e-4]"
    assert "round_03/slice" in cut_for(composed(tmp_path, *ROUNDS, last, variant="v")).stages
    with pytest.raises(ValueError, match=r"the model of round_01/slice, which .* has removed \(keep_rounds=last\)"):
        cut_for(composed(tmp_path, *ROUNDS, "recover.learning_rate=1e-4", variant="v"))
