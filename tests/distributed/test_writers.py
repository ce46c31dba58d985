"""Files that ranks write together: the same bits on any number of ranks, at the same time, seen by all."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.distributed.test_method import make_job
from tests.support.commands import Workplace
from tests.support.ranks import run_on_ranks

SECONDS = 30.0
METHOD = {"pair_score": "magnitude", "values": "magnitude", "channels": "magnitude", "refit": "least_squares"}


def all_at_once(write: Callable[..., Any], folder: Path, group: Any, layers: int) -> Callable[..., Any]:
    """`write`, which begins only once every rank that has a file left has come to write."""

    def write_with_the_others(path: Path, *arguments: Any) -> Any:
        number, *count = map(int, re.findall(r"\d{5}", path.name))
        first, files = (1, count[0]) if count else (0, layers)  # of a model, of Gram matrices
        turn = (number - first) // group.world_size
        (folder / f"{path.parent.name}_{turn}_{group.rank}").touch()
        expected = min(group.world_size, files - turn * group.world_size)
        end = time.monotonic() + SECONDS
        while len(list(folder.glob(f"{path.parent.name}_{turn}_*"))) < expected:
            assert time.monotonic() < end, "the other ranks do not write"
            time.sleep(0.01)
        return write(path, *arguments)

    return write_with_the_others


def digests(files: dict[str, Any]) -> dict[str, str]:
    return {name: each["sha256"] for name, each in files.items()}


def written(folder: Path, model: Path, text: Path) -> dict[str, Any]:
    """Gram files, the sliced model and an engine's weights: the digests of all files, by name."""
    from transact.distributed.process import process_group
    from transact.engine import model_folder
    from transact.engine.engine import open_engine
    from transact.models.folder import geometry_of
    from transact.stages import calibrate
    from transact.stages.slice import cut_model
    from transact.stages.texts import prepare_texts

    with process_group("cpu", 5) as group:
        meeting, layers = folder / "meeting", geometry_of(model).num_layers
        meeting.mkdir(exist_ok=True)
        for module in (model_folder, calibrate):
            module.write_shard = all_at_once(module.write_shard, meeting, group, layers)  # type: ignore[attr-defined]
        job = make_job(folder, model, text, group, METHOD)
        texts = prepare_texts(job, model)
        grams, sliced, saved = (folder / name for name in ("gram", "sliced", "saved"))
        found = {"gram": digests(calibrate.collect_gram_files(job, texts, model, grams))}
        selection = a_selection(job, model, folder)
        found["sliced"] = digests(cut_model(job, texts, model, selection, sliced, grams))
        with open_engine(model, job.config.engine, group) as engine:
            found["saved"] = digests(model_folder.save_engine(engine, saved, group, source=model, dtype="bfloat16"))
        assert not any(path.name.endswith(".tmp") for path in folder.iterdir())
        return found


def a_selection(job: Any, model: Path, folder: Path) -> Any:
    """A selection by magnitude, which reads no statistics but asks for them: zeros, in a file of this rank."""
    from safetensors.torch import save_file

    from transact.pruning.criteria import Criteria
    from transact.pruning.statistics import ActivationStatistics
    from transact.stages.select import collect_evidence, decide

    geometry, target = job.outline.parent, job.outline.rounds[0].geometry
    zeros = ActivationStatistics.zeros(geometry, Criteria.of(job.config.prune.method).statistics(geometry))
    statistics = folder / f"statistics_{job.group.rank}"
    save_file(zeros.to_tensors(), statistics)
    evidence = collect_evidence(job, model, statistics)
    return decide(job.config.prune, evidence, target, None, parent=geometry)


def test_ranks_write_at_the_same_time_what_one_rank_writes(workplace: Workplace, tmp_path: Path) -> None:
    found = {}
    for ranks in (1, 2, 3):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        found[ranks] = run_on_ranks(ranks, written, folder, workplace.model, workplace.train)
    for ranks in (2, 3):
        for rank in range(ranks):
            assert found[ranks][rank] == found[1][0]


def cut_with_views(folder: Path, model: Path, text: Path) -> dict[str, Any]:
    """Rank 1 has a view of its own of where the Gram matrices are: the cuts, and what is said where it stays empty."""
    from transact.distributed.process import process_group
    from transact.stages import job as jobs
    from transact.stages.calibrate import collect_gram_files
    from transact.stages.slice import cut_model
    from transact.stages.texts import prepare_texts

    with process_group("cpu", 5) as group:
        job = make_job(folder, model, text, group, METHOD)
        texts = prepare_texts(job, model)
        grams, late, never = (folder / name for name in ("gram", "late", "never"))
        collect_gram_files(job, texts, model, grams)
        selection = a_selection(job, model, folder)

        def cut(name: str, view: Path, how: Any = job) -> dict[str, str]:
            own = view if group.rank == 1 else grams
            return digests(cut_model(how, texts, model, selection, folder / name, own))

        found: dict[str, Any] = {"same": cut("same", grams)}
        if group.rank == 1:
            threading.Timer(1.5, late.symlink_to, [grams]).start()
        found["late"] = cut("late_cut", late)
        plainly = make_job(folder, model, text, group, METHOD | {"refit": "none"})
        found["without"] = cut("without", never, plainly)
        jobs.SHARED_FOLDER_SECONDS = 1.0
        try:
            cut("never_cut", never)
        except ValueError as error:
            found["never"] = str(error)
        return found


def test_a_rank_that_sees_the_gram_folder_late_does_not_cut_without_it(workplace: Workplace, tmp_path: Path) -> None:
    one, other = run_on_ranks(2, cut_with_views, tmp_path, workplace.model, workplace.train)
    assert one == other
    assert one["late"] == one["same"]
    assert one["without"] != one["same"]
    assert "is not there on rank 1" in one["never"] and "Gram matrices" in one["never"]
    assert not (tmp_path / "never_cut").exists()


def passes_by_free_memory(folder: Path, model: Path, text: Path) -> dict[str, Any]:
    """Rank 1 finds little memory: the passes that both choose, and the files that these leave, by what was asked.

    The files are made in passes of their own, and with the first one summed in calibration.
    """
    from transact.distributed.process import process_group
    from transact.engine import free_memory
    from transact.models.folder import geometry_of
    from transact.stages.calibrate import calibrate, choose_passes, collect_gram_files
    from transact.stages.texts import prepare_texts

    with process_group("cpu", 5) as group:
        found: dict[str, Any] = {}
        for name, asked, kibibytes in (("much", None, 1 << 22), ("little", None, 100), ("asked", 1.0, 100)):
            job = make_job(folder, model, text, group, METHOD | {"gram_gib": asked})
            if group.rank == 1:
                free_memory.MEMORY_INFO = folder / "meminfo"
                free_memory.MEMORY_INFO.write_text(f"MemTotal: 1 kB\nMemAvailable: {kibibytes} kB\n")
            texts = prepare_texts(job, model)
            files = digests(collect_gram_files(job, texts, model, folder / name))
            passes = [list(each) for each in choose_passes(job, geometry_of(model))]
            alone, on_the_way = (folder / f"{name}_{way}.safetensors" for way in ("alone", "on_the_way"))
            assert calibrate(job, texts, model, alone) is None
            summed = calibrate(job, texts, model, on_the_way, with_grams=True)
            assert summed is not None and [list(each) for each in summed.passes] == passes
            assert digests(collect_gram_files(job, texts, model, folder / f"{name}_summed", summed)) == files
            group.barrier()
            assert on_the_way.read_bytes() == alone.read_bytes()
            found[name] = passes, files
        return found


def test_the_rank_with_the_least_free_memory_decides_how_often_all_calibrate(
    workplace: Workplace, tmp_path: Path
) -> None:
    one, other = run_on_ranks(2, passes_by_free_memory, tmp_path, workplace.model, workplace.train)
    assert one == other
    assert [passes for passes, _ in one.values()] == [[[0, 1]], [[0], [1]], [[0, 1]]]
    assert one["much"][1] == one["little"][1] == one["asked"][1]
