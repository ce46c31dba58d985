"""mode=tokenize prepares a run's text on CPUs: the run finds it, and tokenises nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY, Workplace, transact, transact_as_users_do
from tests.support.runs import start, wait_until
from transact.files import read_json

SMALL = ["prune.rounds=1", "recover.tokens=4096", "eval.efficiency.measured=false"]


def overrides_of(workplace: Workplace, name: str, folder: Path) -> list[str]:
    return [*workplace.overrides(name), *SMALL, f"output_dir={folder}/{name}", f"data.token_store={folder}/tokens"]


def test_the_job_needs_no_gpu_and_no_deepspeed_and_the_run_starts_from_its_tokens(
    workplace: Workplace, tmp_path: Path
) -> None:
    """With the settings of a run on GPUs; and once more, it finds its own."""
    absent = tmp_path / "absent" / "deepspeed"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ImportError('there is none')")
    variables = {"PYTHONPATH": f"{absent.parent}{os.pathsep}{REPOSITORY}"}
    overrides = overrides_of(workplace, "run", tmp_path)
    texts = [f"+eval.texts.more={{source: files, files: [{workplace.heldout}]}}"]
    asked = [*overrides, *texts, "mode=tokenize", "engine=gpu", "launch=local", "recover.batch_sequences=8"]
    asked += ["engine.attention=flash_attention_2", "engine.kernels=liger"]
    first = transact_as_users_do(asked, variables=variables)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count("tokenise data.train") and "mode=tokenize" not in first.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == ["run_tokenize"]
    record = read_json(tmp_path / "run_tokenize" / "run.json")
    assert (record["state"], record["world_size"], record["stages"]) == ("done", 2, {})
    stores = {path for path in (tmp_path / "tokens").iterdir() if path.is_dir()}
    assert len(stores) == 3
    for name in ("data.train", "data.evaluation", "eval.texts.more"):
        line = next(each for each in first.stdout.splitlines() if each.startswith(name) and " tokens in " in each)
        assert Path(line.partition(" tokens in ")[2]) in stores

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")}
    for more in (["mode=tokenize", "recover.tokens=4000"], []):
        again = transact([*overrides, *texts, *more])
        assert again.returncode == 0, again.stderr
        assert "tokenise" not in again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")} == before
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_is_stopped_goes_on(number: signal.Signals, workplace: Workplace, tmp_path: Path) -> None:
    """The parts that were finished are not written again."""
    text = tmp_path / "long.txt"
    line = " ".join(f"word{number}" for number in range(4000))
    text.write_text("\n\n".join(f"{number} {line}" for number in range(400)))
    overrides = [*overrides_of(workplace, "run", tmp_path), f"data.train.files=[{text}]", "recover.tokens=1000000000"]
    process = start([*overrides, "mode=tokenize"])

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("tokens/*.tmp/part_*.safetensors")}

    wait_until(lambda: len(parts()) >= 2, process)
    os.kill(process.pid, number)
    said = "".join(process.communicate(timeout=30))
    assert process.returncode == (1 if number == signal.SIGTERM else -signal.SIGKILL)
    assert number == signal.SIGKILL or "the same command goes on" in said
    finished = parts()
    assert len(finished) >= 2
    process = start([*overrides, "mode=tokenize"])
    wait_until(lambda: len(parts()) > len(finished), process)
    assert {name: parts()[name] for name in finished} == finished
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            ["launch=slurm", "launch.gpus_per_node=8"],
            "launch.gpus_per_node=8 is not allowed: mode=tokenize asks for no",
        ),
        (["recover.variant=other"], "recover.variant='other' is not allowed: mode=tokenize"),
        (["-m", "prune.remove_fraction=0.3,0.4"], "mode='tokenize' is not allowed: it is one job, without -m"),
        (["data.train.files=[/nowhere.txt]"], "data.train.files: '/nowhere.txt' names no file"),
        (["engine.micro_batch_sequences=3"], "recover.batch_sequences=8 is not allowed: it must be a multiple"),
    ],
)
def test_a_wrong_request_is_one_line(asked: list[str], reason: str, workplace: Workplace, tmp_path: Path) -> None:
    ended = transact([*overrides_of(workplace, "run", tmp_path), "mode=tokenize", *asked])
    assert ended.returncode == 2
    assert ended.stdout == "" and ended.stderr.count("\n") == 1 and reason in ended.stderr, ended.stderr
    assert not list(tmp_path.iterdir())
