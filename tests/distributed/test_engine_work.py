"""What keeps a GPU waiting stays within a budget, counted on two ZeRO-3 ranks with the settings of engine=gpu."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine_work import GATHERS, HOST_TARGET, architecture, counting, engine_config, measure
from benchmarks.random_models import write_random_model
from tests.support.ranks import run_on_ranks


def measured(folder: Path) -> dict[str, Any]:
    from transact.distributed.process import process_group

    with process_group("cpu", 5) as group:
        return asdict(measure(folder, group, repetitions=2, at_most=8))


def test_a_micro_batch_of_distillation_stays_within_its_budget(tmp_path: Path) -> None:
    """DeepSpeed's defaults, with a hook around every matrix, need 516 all-gathers of 2.85 models, and two waits."""
    for work in run_on_ranks(2, measured, tmp_path):
        assert work["gathers"] <= 100
        assert work["volume"] <= 2.1
        assert work["synchronisations"] == 0
        assert work["reads"] <= 2
        assert work["host"] <= 2 * HOST_TARGET  # other tests run beside this one; make bench holds it to the target


TAUGHT = 4  # micro-batches of a step


def taught(folder: Path, attention: str, dtype: str) -> dict[int, Any]:
    """Micro-batches together -> all-gathers of the teacher in a step, its weights gathered, and hidden states."""
    import torch

    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine
    from transact.models.folder import geometry_of
    from transact.stages.recover.teacher import Teacher

    with process_group("cpu", 5) as group:
        write_random_model(folder / "model", architecture(), group)
        model = folder / "model"
        config = replace(engine_config("cpu"), attention=attention, dtype=dtype)
        vocabulary = architecture().vocab_size
        generator = torch.Generator().manual_seed(group.rank)
        batch = list(torch.randint(0, vocabulary, (TAUGHT, 2, 32), generator=generator))
        found = {}
        with open_engine(model, config, group) as engine:
            for at_once in (1, TAUGHT, TAUGHT - 1):
                teacher = Teacher(engine, geometry_of(model), weight=1.0, temperature=1.0, at_once=at_once)
                list(teacher.teach(batch))  # DeepSpeed looks at the order of layers in the first two forwards
                with counting() as counted:
                    hidden = [each.hidden.float().numpy() for each in teacher.teach(batch)]
                gathers = sum(counted.calls[name] for name in GATHERS)
                found[at_once] = (gathers, counted.gathered / geometry_of(model).parameters(), hidden)
            found[0] = (0, 0.0, [engine.final_hidden([tokens])[0].float().numpy() for tokens in batch])
            assert "forward" not in vars(engine.module.model.layers[0])
    return found


@pytest.mark.parametrize(("attention", "dtype"), [("sdpa", "bfloat16"), ("eager", "float32")])
def test_the_teacher_is_gathered_once_a_step(tmp_path: Path, attention: str, dtype: str) -> None:
    """However many micro-batches the step has; each learns from the same bits as if it were taught alone."""
    for found in run_on_ranks(2, taught, tmp_path, attention, dtype):
        gathers, volume, alone = found[1]
        assert volume == pytest.approx(TAUGHT, rel=0.3)
        assert found[TAUGHT][:2] == (gathers / TAUGHT, volume / TAUGHT)
        assert found[TAUGHT - 1][:2] == (gathers / 2, volume / 2)  # three together, then the last
        for at_once in (0, TAUGHT, TAUGHT - 1):
            for one, other in zip(alone, found[at_once][2], strict=True):
                assert (one == other).all()
