"""The micro-batch of engine settings `auto`: the largest that fits, recomputed where needed, kept on a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.configs import compose_config
from transact.config.run import RunConfig
from transact.engine.gram_memory import FREE_SHARE
from transact.estimate.contents import forecast
from transact.estimate.text import text
from transact.models.llama import read_geometry
from transact.rounds import Outline, outline
from transact.runs.run_record import read_record
from transact.stages.micro_batch import MicroBatch, choose
from transact.stages.preflight import check_ranks

LENGTH = 2048
# Ten layers of width 8 in float32, nothing split: 16 bytes a parameter for weights, gradients and Adam's moments.
# Parameters: a table of 16 x 8, ten layers of 4 x 64 + 3 x 128 + 16, and the last norm.
FIXED = 16 * (128 + 10 * 656 + 8)
# Bytes of a token. Each layer keeps 6 x 8 of norms and projections, 8 x 4 of heads and 4 x 16 of the MLP; 3 x 8 are
# around the last norm; then three copies of 16 logits, which take as much as the gradients of a layer.
KEPT = (10 * (48 + 32 + 64) + 24 + 48) * 4
# Recomputed: a hidden state a layer, and a single layer with its gradients of 2 x (16 + 8), beside the last norm's.
RECOMPUTED = (10 * 8 + 24 + 144 + 48) * 4


@pytest.fixture
def tiny() -> tuple[RunConfig, Outline]:
    dimensions = {"hidden_size": 8, "num_hidden_layers": 10, "num_attention_heads": 2, "num_key_value_heads": 2}
    dimensions |= {"head_dim": 4, "intermediate_size": 16, "vocab_size": 16, "max_position_embeddings": LENGTH}
    architecture = ",".join(f"{name}:{value}" for name, value in dimensions.items())
    settings = ["name=tiny", "mode=pretrain", "model=demo_random", f"+model.architecture={{{architecture}}}"]
    settings = [each.replace("+model", "model") for each in settings]
    settings += [f"data.sequence_length={LENGTH}", "recover.objective=cross_entropy", "recover.batch_sequences=12"]
    settings += ["engine.zero_stage=0", "engine.device=cuda", "recover.tokens=49152"]
    config = compose_config([*settings, "engine.micro_batch_sequences=auto", "engine.activation_checkpointing=auto"])
    assert config.model.architecture is not None
    return config, outline(config, read_geometry(config.model.architecture.to_model_config()))


def needed(sequences: int, per_token: int) -> int:
    return FIXED + sequences * LENGTH * per_token


def chosen(tiny: tuple[RunConfig, Outline], memory: float, before: dict[str, Any] | None = None) -> MicroBatch:
    config, whole = tiny
    return choose(config, whole, 1, memory, before)


@pytest.mark.parametrize(
    ("fits", "too_little", "sequences", "recomputes"),
    [
        (needed(12, KEPT), 0, 12, False),
        (needed(6, KEPT), 1, 6, False),
        (needed(4, KEPT), 1, 4, False),  # 8,192 tokens, which are enough
        (needed(3, KEPT), 0, 12, True),  # 6,144 are not: KEPT is 5.1 times RECOMPUTED
        (needed(12, RECOMPUTED), 1, 12, True),
        (needed(1, RECOMPUTED), 0, 1, True),
    ],
)
def test_the_largest_that_fits(
    tiny: tuple[RunConfig, Outline], fits: int, too_little: int, sequences: int, recomputes: bool
) -> None:
    """With exactly the memory it needs it is taken, and with a byte less a smaller one, or one that is recomputed."""
    found = chosen(tiny, fits / FREE_SHARE + 0.1)
    assert (found.sequences, found.recomputes, found.fits) == (sequences, recomputes, True)
    assert found.needed == needed(sequences, RECOMPUTED if recomputes else KEPT)
    if too_little:
        assert chosen(tiny, (fits - 1) / FREE_SHARE).needed < fits
    assert f"micro-batch: {sequences} sequence" in found.words()
    assert ("recomputed" in found.words()) is recomputes


def test_where_nothing_fits_the_least_is_taken_and_said_to_be_too_much(tiny: tuple[RunConfig, Outline]) -> None:
    found = chosen(tiny, needed(1, RECOMPUTED) - 1)
    assert (found.sequences, found.recomputes, found.fits) == (1, True, False)
    assert "memory may run out" in found.words()


def test_what_is_given_is_taken(tiny: tuple[RunConfig, Outline]) -> None:
    """Only what is left to the run is chosen: recomputation for a given micro-batch, or the other way round."""
    config, _ = tiny
    config.engine.micro_batch_sequences = 6
    assert not chosen(tiny, needed(6, KEPT) / FREE_SHARE + 0.1).recomputes
    assert chosen(tiny, needed(6, KEPT) / FREE_SHARE - 2).recomputes
    config.engine.micro_batch_sequences, config.engine.activation_checkpointing = "auto", False
    assert chosen(tiny, needed(3, KEPT) / FREE_SHARE + 0.1).sequences == 3


def test_only_divisors_of_a_rank_s_batch(tiny: tuple[RunConfig, Outline]) -> None:
    config, whole = tiny
    for ranks, most in ((1, 12), (2, 6), (3, 4), (12, 1)):
        assert choose(config, whole, ranks, 1e12).sequences == most
    with pytest.raises(
        ValueError, match=r"batch_sequences=12 is not allowed: it must be a multiple of the number of r"
    ):
        check_ranks(config, 5)


def test_without_recovery_it_divides_what_a_rank_calibrates_on() -> None:
    asked = ["+experiment=llama7b_50pct", "recover.tokens=0", "engine.micro_batch_sequences=auto"]
    asked += ["prune.calibration_sequences=48", "data.sequence_length=64", "engine.device=cuda"]
    config = compose_config(asked)
    assert config.model.architecture is not None
    whole = outline(config, read_geometry(config.model.architecture.to_model_config()))
    for ranks, most in ((1, 48), (4, 12), (9, 5)):
        found = choose(config, whole, ranks, 1e12)
        assert found.sequences == most
        assert f"(all {most} that calibration has for it)" in found.words()


def test_a_run_keeps_what_it_began_with(tiny: tuple[RunConfig, Outline]) -> None:
    """On a machine with more memory, and on one with less, where it says what would fit."""
    began = {"micro_batch_sequences": 6, "activation_checkpointing": False}
    larger, smaller = chosen(tiny, 1e12, began), chosen(tiny, needed(2, KEPT) / FREE_SHARE, began)
    assert (larger.sequences, larger.recomputes) == (smaller.sequences, smaller.recomputes) == (6, False)
    assert "as this run began" in larger.words()
    now = chosen(tiny, needed(2, KEPT) / FREE_SHARE)
    assert f"engine.micro_batch_sequences={now.sequences} engine.activation_checkpointing=true needs" in smaller.words()
    tiny[0].engine.micro_batch_sequences = 4  # given now
    assert chosen(tiny, 1e12, began).sequences == 4


def test_a_batch_that_is_divided_otherwise_needs_another(tiny: tuple[RunConfig, Outline]) -> None:
    config, whole = tiny
    found = choose(config, whole, 3, 1e12, {"micro_batch_sequences": 6, "activation_checkpointing": False})
    assert found.sequences == 4
    assert "the 6 that this run began with do not divide these" in found.words()


def test_an_estimate_says_what_the_run_would_choose() -> None:
    asked = ["+experiment=llama7b_50pct", "estimate.num_ranks=8"]
    found = forecast(compose_config([*asked, "estimate.accelerator=h100"]))
    words = found["micro_batch"]
    sequences, recomputes = int(words.split()[1]), "recomputed" in words
    given = [f"engine.micro_batch_sequences={sequences}", f"engine.activation_checkpointing={recomputes}"]
    explicit = forecast(compose_config([*asked, *given, "estimate.accelerator=h100"]))
    assert explicit["micro_batch"] is None
    assert found["memory"]["moments"] == explicit["memory"]["moments"]
    assert " ".join(words.split()[:3]) in text(found)
    unknown = forecast(compose_config(asked))
    assert "the run chooses it" in unknown["micro_batch"]
    assert unknown["memory"]["peak_gib"] < found["memory"]["peak_gib"]


def test_points_of_a_sweep_choose_alike(tiny: tuple[RunConfig, Outline]) -> None:
    """However much each of them removes, so that they share what is made of the parent."""
    found = []
    for fraction in ("0.3", "0.7"):
        config = compose_config(["+experiment=llama7b_50pct", f"prune.remove_fraction={fraction}"])
        config.data.sequence_length, config.share_dir = LENGTH, "/nowhere/shared"
        assert config.model.architecture is not None
        whole = outline(config, read_geometry(config.model.architecture.to_model_config()))
        found.append(choose(config, whole, 8, 79 * 2**30))
    assert found[0] == found[1]


@pytest.mark.parametrize("engine", [[], {"micro_batch_sequences": "8"}, {"micro_batch_sequences": 0}])
def test_a_damaged_record_is_refused(tmp_path: Path, engine: Any) -> None:
    record = {"layout": 3, "state": "running", "stages": {}, "engine": engine}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is not what transact wrote"):
        read_record(tmp_path)
