"""How often a round loads a model: stages that look at the same one share its engine, and find the same bits."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.commands import Workplace
from tests.support.ranks import run_on_ranks

LOOKED_AT = ("round_*/evaluation.json", "round_*/statistics.safetensors", "round_*/recovered/*", "export/*.safetensors")


def chain(overrides: list[str], *, is_shared: bool) -> dict[str, Any]:
    """Run the chain on this rank: each engine that was opened, with how many were open then, and what the run wrote."""
    from transact.config.compose import compose_config
    from transact.distributed.process import process_group
    from transact.engine import engine as engines
    from transact.engine.activation_memory import BYTES_BY_DTYPE
    from transact.engine.lending import LentEngine
    from transact.estimate.storage import stage_traffic
    from transact.models.folder import geometry_of
    from transact.rounds import outline
    from transact.runs.run_folder import RunFolder
    from transact.stages.chain import prepare, run_chain
    from transact.stages.evaluate import measure, measure_ahead
    from transact.stages.job import Job
    from transact.tracking.tracker import Tracker

    config = compose_config(overrides)
    opened: list[tuple[str, str, bool]] = []
    parameters: Counter[str] = Counter()  # that were read for the engines of a stage
    alive, most = [0], [0]
    real_build, real_init, real_close = engines.build, engines.Engine.__init__, engines.Engine.close
    real_of = LentEngine.of

    with process_group("cpu", 5) as group:

        def counted_build(folder: Path, *arguments: Any) -> Any:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            opened.append((group.watchdog.stage, folder.name, False))
            parameters[group.watchdog.stage] += geometry_of(folder).parameters()
            return real_build(folder, *arguments)

        def counted_init(engine: Any, *arguments: Any, trains: bool) -> None:
            opened[-1] = (*opened[-1][:2], trains)
            real_init(engine, *arguments, trains=trains)

        def counted_close(engine: Any) -> None:
            alive[0] -= 1
            real_close(engine)

        @contextmanager
        def alone(lent: Any, *arguments: Any) -> Any:
            """As if every stage opened an engine of its own."""
            with real_of(lent, *arguments) as engine:
                yield engine
            lent.close()

        folder = RunFolder(Path(config.output_dir))
        if group.is_main:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.open(group.world_size)
        group.barrier()
        asked = outline(config, geometry_of(Path(config.model.path or "")))
        job = Job(config=config, group=group, folder=folder, outline=asked, tracker=Tracker(None, None))

        def measured_anew(job: Any, *arguments: Any) -> Any:
            job.measured.clear()
            return measure(job, *arguments)

        with (
            patch.object(engines, "build", counted_build),
            patch.object(engines.Engine, "__init__", counted_init),
            patch.object(engines.Engine, "close", counted_close),
            patch.object(LentEngine, "of", real_of if is_shared else alone),
            patch("transact.stages.evaluate.measure", measure if is_shared else measured_anew),
            patch("transact.stages.chain.measure_ahead", measure_ahead if is_shared else lambda *_: None),
        ):
            begin = time.monotonic()
            run_chain(job, prepare(job))
            seconds = time.monotonic() - begin
        group.barrier()
        files = {
            path.relative_to(folder.path).as_posix(): path.read_bytes()
            for pattern in LOOKED_AT
            for path in folder.path.glob(pattern)
        }
    config.engine.zero_stage = 1  # each further rank reads what engines open, and nothing else
    one, two = (stage_traffic(config, asked, ranks, {}) for ranks in (1, 2))
    counted = {stage.name: (two[stage].read - one[stage].read) / BYTES_BY_DTYPE[config.model.dtype] for stage in one}
    return {
        "parameters": dict(parameters),
        "counted": counted,
        "opened": opened,
        "most": most[0],
        "left": alive[0],
        "files": files,
        "seconds": seconds,
    }


def test_a_round_opens_three_engines(workplace: Workplace) -> None:
    """Calibration, Gram matrices and the evaluation before them look through one, the first losses through the one
    that trains.

    Each look with an engine of its own makes six of it, and writes the same files.
    """
    found = {}
    for is_shared in (True, False):
        name = f"engines_{is_shared}"
        overrides = [*workplace.overrides(name), "recover.objective=mixed", "prune/method=taylor", "keep_rounds=all"]
        overrides += ["prune.method.refit=least_squares", "engine.zero_stage=3", "eval.efficiency.measured=false"]
        ranks = run_on_ranks(2, _chain, overrides, is_shared)
        found[is_shared] = ranks[0]
        assert [each["opened"] for each in ranks] == [ranks[0]["opened"]] * 2
        assert all(each["left"] == 0 for each in ranks)
    shared, alone = found[True], found[False]
    first = [("round_00/evaluate", "model", False)]
    rounds = [
        opening
        for each in ("round_01", "round_02")
        for opening in (
            (f"{each}/recover", "sliced", True),
            (f"{each}/recover", "model", False),
            (f"{each}/evaluate", "recovered", False),
        )
    ]
    assert [each for each in shared["opened"] if each[0] != "export"] == first + rounds
    # The estimate counts what is opened; of the export it knows less.
    counted = {name: size for name, size in shared["counted"].items() if size and name != "export"}
    assert counted == {name: size for name, size in shared["parameters"].items() if name != "export"}
    assert len(alone["opened"]) - len(shared["opened"]) == 2 * (6 - 3)
    assert shared["most"] == alone["most"] == 2  # teacher and student: no other is open beside them
    assert shared["files"].keys() == alone["files"].keys() and len(shared["files"]) > 10
    for name, content in alone["files"].items():
        assert shared["files"][name] == content, name
    print(f"{alone['seconds']:.1f} s with an engine for each stage, {shared['seconds']:.1f} s shared")


def _chain(overrides: list[str], is_shared: bool) -> dict[str, Any]:
    return chain(overrides, is_shared=is_shared)
