"""Who a process is, from what its launcher says in the environment; written down from real steps of SLURM 22.05."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from transact.distributed import environment
from transact.distributed.environment import (
    OF_SLURM,
    OF_TORCHRUN,
    adopt_launcher,
    adopt_slurm_step,
    check_launcher,
    first_host,
    launched_processes,
)

STEP = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "10",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),2",
    "SLURM_STEP_NODELIST": "gpu[003-004,7]",
}


def adopted(**environ: str) -> dict[str, str]:
    adopt_slurm_step(environ)
    return environ


def test_srun() -> None:
    found = adopted(**STEP)
    assert (found["RANK"], found["WORLD_SIZE"]) == ("9", "10")
    assert (found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("1", "2")
    assert found["MASTER_ADDR"] == "gpu003"
    assert 20_000 <= int(found["MASTER_PORT"]) <= 32_000


def test_all_ranks_choose_the_same_port_and_another_one_after_a_restart() -> None:
    here, there = adopted(**STEP), adopted(**STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert here["MASTER_PORT"] == there["MASTER_PORT"]
    ports = {adopted(**STEP | {"SLURM_RESTART_COUNT": str(count)})["MASTER_PORT"] for count in range(1, 20)}
    assert len(ports - {here["MASTER_PORT"]}) >= 18


def test_one_node_stays_on_its_loopback() -> None:
    alone = STEP | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "10", "SLURM_NODEID": "0"}
    found = adopted(**alone)
    assert found["MASTER_ADDR"] == "127.0.0.1"
    assert found["LOCAL_WORLD_SIZE"] == "10"


def test_what_the_user_says_counts() -> None:
    found = adopted(**STEP | {"MASTER_ADDR": "gpu003-ib", "MASTER_PORT": "29500"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["RANK"]) == ("gpu003-ib", "29500", "9")


def test_one_process_without_a_launcher_heeds_no_other_jobs_address() -> None:
    """Of a shell that started that job before: it would wait for a machine where nobody serves."""
    other = {"MASTER_ADDR": "gpu003", "MASTER_PORT": "29500", "RANK": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environ = {"PATH": "/bin"} | other
    adopt_launcher(environ)
    assert environ == {"PATH": "/bin"}


def test_what_a_launcher_said_is_kept() -> None:
    of_torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "gpu003"}
    environ = dict(of_torchrun)
    adopt_launcher(environ)
    assert environ == of_torchrun
    of_srun = STEP | {"MASTER_ADDR": "gpu003-ib"}
    adopt_launcher(of_srun)
    assert of_srun["MASTER_ADDR"] == "gpu003-ib"


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="no launcher"),
        pytest.param(
            {"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"},
            id="a batch script without srun, which would wait for peers for ever",
        ),
        pytest.param(STEP | {"TORCHELASTIC_RUN_ID": "17", "RANK": "3", "WORLD_SIZE": "8"}, id="torchrun inside srun"),
        pytest.param(
            STEP | {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, id="a script that set all"
        ),
    ],
)
def test_nothing_is_changed(environ: dict[str, str]) -> None:
    assert adopted(**environ) == environ


WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
NO_NUMBERS = ("", " ", "abc", "-1", "1.5", "1e3", "0x1", "\u0663", "9" * 40, "nan", "1\n", "\x1b[2J")


@pytest.mark.parametrize("name", [*OF_TORCHRUN, *OF_SLURM])
def test_a_variable_that_is_no_such_number_is_refused(name: str) -> None:
    environ = WHOLE | {"SLURM_JOB_ID": "17"}
    least, most = (OF_TORCHRUN | OF_SLURM)[name]
    for value in (*NO_NUMBERS, str(least - 1), str(most + 1)):
        with pytest.raises(ValueError, match=name):
            check_launcher(environ | {name: value})


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"WORLD_SIZE": "2"}, "without RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "without MASTER_ADDR, MASTER_PORT"),
        (WHOLE | {"MASTER_ADDR": " "}, "without MASTER_ADDR"),
        (WHOLE | {"RANK": "5"}, "RANK=5 is not allowed: it must be below WORLD_SIZE=2"),
        (WHOLE | {"RANK": "2"}, "RANK=2"),
        (WHOLE | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2"),
        (WHOLE | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK=1"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3"),
        (STEP | {"SLURM_PROCID": "10"}, "RANK=10"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(environ: dict[str, str], named: str) -> None:
    before = dict(environ)
    with pytest.raises(ValueError, match=named):
        check_launcher(environ)
    assert environ == before


def test_an_address_that_no_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ADDRESS_SECONDS", 0.0)
    for address in ("http://127.0.0.1", "127.0.0.1:29500", "two words", "a" * 300, "\x1b[2J"):
        with pytest.raises(ValueError, match=r"MASTER_ADDR.* is not allowed: no machine has this name"):
            check_launcher(WHOLE | {"MASTER_ADDR": address})
        check_launcher({"WORLD_SIZE": "1", "MASTER_ADDR": address})  # nobody is looked for
    for address in ("localhost", "::1", socket.gethostname()):
        check_launcher(WHOLE | {"MASTER_ADDR": address})


@pytest.mark.parametrize("environ", [{}, WHOLE, STEP, {"WORLD_SIZE": "1"}, {"RANK": "abc", "MASTER_PORT": "0"}])
def test_sound_variables_and_those_that_nobody_heeds_are_not(environ: dict[str, str]) -> None:
    check_launcher(environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("n[1-3]", "n1"), ("n[010,012]-ib,m1", "n010-ib"), ("r[1-2]n[3-4]", "r1n3")],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_the_copy_that_a_job_runs_has_the_task_files(tmp_path: Path) -> None:
    """They are package data; the demo's weights and conf/ are not needed there."""
    from transact.launch.cluster import snapshot
    from transact.stages.tasks import OWN_TASKS

    package = snapshot(tmp_path) / "transact"
    assert {path.name for path in (package / "assets" / OWN_TASKS.name).iterdir()} == {
        path.name for path in OWN_TASKS.iterdir()
    }
    assert not list(package.rglob("*.safetensors"))


def test_processes_of_srun_are_seen_before_its_variables_are_adopted() -> None:
    """Each of them would start ranks of its own."""
    before = dict(STEP)
    assert launched_processes(STEP) == int(STEP["SLURM_STEP_NUM_TASKS"]) > 1
    assert before == STEP and launched_processes({}) == 1 and launched_processes(WHOLE) == int(WHOLE["WORLD_SIZE"])
