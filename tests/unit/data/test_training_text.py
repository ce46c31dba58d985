"""The training text of a mixture: what is asked of each source, and that nothing depends on how they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from transact.config.compose import compose_config
from transact.config.pruning import RESERVED_SPREAD
from transact.config.run import RunConfig
from transact.data.mixture import Dealing
from transact.data.training_text import sequences_by_text
from transact.stages.text_checks import check_texts


def mixture(folder: Path, *sources: tuple[str, str, str], overrides: tuple[str, ...] = ()) -> RunConfig:
    """Of (name, file, further settings) each."""
    (folder / "held.txt").write_text("What is held out, and nothing else.\n")
    for name in ("one.txt", "other.txt"):
        (folder / name).write_text(f"The text of {name}, which is read.\n")
    named = [
        f"+data.train.sources.{name}={{source: files, files: [{folder / file}], {settings}}}"
        for name, file, settings in sources
    ]
    held = ["data.evaluation.source=files", f"data.evaluation.files=[{folder / 'held.txt'}]"]
    return compose_config([f"name=x_{len(named)}", "model.path=m", "data=mixture", *held, *named, *overrides])


def test_the_order_in_which_sources_are_written_changes_nothing(tmp_path: Path) -> None:
    sources = ("b", "one.txt", "weight: 1"), ("a", "other.txt", "weight: 3")
    one, other = (mixture(tmp_path, *each).data for each in (sources, sources[::-1]))
    assert (
        list(one.training_texts()) == list(other.training_texts()) == ["data.train.sources.a", "data.train.sources.b"]
    )
    assert list(sequences_by_text(one, 1_000, 64).values()) == list(sequences_by_text(other, 1_000, 64).values())


@pytest.mark.parametrize("count", [8 * 192, 10_000])
def test_reserved_sequences_do_not_depend_on_how_much_is_trained(tmp_path: Path, count: int) -> None:
    """Each source has all sequences that its reserved ones are drawn from."""
    data = mixture(tmp_path, ("a", "one.txt", "weight: 0.95"), ("b", "other.txt", "weight: 0.05")).data
    reserved = Dealing((0.95, 0.05)).counts(192).tolist()
    for wanted, own in zip(sequences_by_text(data, count, 192).values(), reserved, strict=True):
        assert wanted >= RESERVED_SPREAD * own


def test_others_may_stand_in_for_a_source_that_stops(tmp_path: Path) -> None:
    data = mixture(tmp_path, ("a", "one.txt", "weight: 1, at_end: stop"), ("b", "other.txt", "weight: 9")).data
    assert set(sequences_by_text(data, 1_000, 64).values()) == {1_000}


def test_sources_that_share_a_file_are_refused(tmp_path: Path) -> None:
    """What one of them reserves for validation would be trained on as a part of the other."""
    check_texts(mixture(tmp_path, ("a", "one.txt", "weight: 1"), ("b", "other.txt", "weight: 1")))
    with pytest.raises(ValueError, match=r"^data\.train\.sources\.b\.files: .*one\.txt' is trained on too"):
        check_texts(mixture(tmp_path, ("a", "o*.txt", "weight: 1"), ("b", "one.txt", "weight: 1")))


def test_weights_that_adapt_need_a_loss_of_every_text(tmp_path: Path) -> None:
    sources = ("a", "one.txt", "weight: 1"), ("b", "other.txt", "weight: 1000")
    with pytest.raises(ValueError, match=r"^recover\.validation_sequences=8 is not allowed: data\.train\.sources\.a"):
        check_texts(
            mixture(tmp_path, *sources, overrides=("data.train.adaptive=true", "recover.validation_sequences=8"))
        )


@pytest.mark.parametrize("setting", ["loss=answers", "+messages_field=messages", "files=[a.txt]"])
def test_a_mixture_has_no_text_of_its_own(tmp_path: Path, setting: str) -> None:
    plus, name = ("+", setting[1:]) if setting[0] == "+" else ("", setting)
    with pytest.raises(ValueError, match=r"each of data\.train\.sources has its own"):
        mixture(tmp_path, ("a", "one.txt", "weight: 1"), overrides=(f"{plus}data.train.{name}",))
