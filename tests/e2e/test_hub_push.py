"""A push to the hub at the end of a job, by its real client to a stand-in: complete, private, resumed, made once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import REPOSITORY, Workplace, command, environment, transact, transact_as_users_do
from tests.support.hub import Account, Answer, Hub, Request, serving
from tests.support.wandb_files import inspected

pytest.importorskip("gguf", reason="the file for llama.cpp needs transact[gguf]")

TOKEN = "hf_PlantedTokenOfSomebodyWhoPushes"
SHORT = ["prune.rounds=1", "recover.tokens=2048", "data.evaluation_sequences=8", "export.gguf=f16"]
READ = """
import json, sys, torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

tokens = torch.arange(24).reshape(1, 24)
logits = [AutoModelForCausalLM.from_pretrained(name)(tokens).logits for name in sys.argv[1:]]
AutoTokenizer.from_pretrained(sys.argv[1])
results = ModelCard.load(sys.argv[1]).data.eval_results
print(json.dumps([bool(torch.equal(*logits)), [each.metric_value for each in results]]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        hub.accounts |= {TOKEN: Account(name="me"), "hf_read": Account(name="me", role="read")}
        yield hub


def failing(status: int, times: int, what: str = "/commit/") -> Any:
    """The first requests of a kind fail."""
    left = [times]

    def interrupt(request: Request) -> Answer | None:
        if what not in f"/{request.path}" or not left[0]:
            return None
        left[0] -= 1
        return status, {}, b"{}"

    return interrupt


def large_files(run: Path) -> dict[str, bytes]:
    """By their names in the repository."""
    found = [*run.glob("export/*.safetensors"), *run.glob("gguf/*")]
    return {path.name: path.read_bytes() for path in found}


def digests(run: Path) -> list[str]:
    return sorted(hashlib.sha256(content).hexdigest() for content in large_files(run).values())


def assert_complete(hub: Hub, name: str, run: Path) -> None:
    """The repository holds what the run made, bit for bit but for the card, which names the repository."""
    there = dict(hub.files(name))
    assert there.pop(".gitattributes")
    card = there.pop("README.md").decode()
    assert f'from_pretrained("{name}"' in card
    assert card.startswith((run / "export" / "README.md").read_text().partition("## Use")[0])
    companions = {path.name: path.read_bytes() for path in run.glob("export/*") if path.name != "README.md"}
    assert there == companions | large_files(run)


def test_the_job_ends_with_a_private_repository_that_stock_code_loads(
    hub: Hub, workplace: Workplace, tmp_path: Path
) -> None:
    """Two ranks, a hub that is out of order for a moment, and no trace of the token."""
    run, variables = workplace.folder / "pushed", hub.variables(tmp_path / "cache", TOKEN)
    overrides = [*workplace.overrides("pushed"), *SHORT, "export.hub=me/half", "track.mode=offline"]
    hub.interrupt = failing(503, times=1)
    ended = transact_as_users_do(overrides, ranks=2, variables=variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_complete(hub, "me/half", run)
    assert hub.private == {"me/half"} and len(hub.commits("me/half")) == 2
    assert sorted(hub.received) == digests(run), "a failed attempt sends nothing twice"

    assert f"on the hub: {hub.address}/me/half (private)" in ended.stdout
    assert ended.stdout.count("once more in 2 s") == 1
    result = json.loads((run / "result.json").read_text())
    assert result["hub"] == json.loads((run / "hub.json").read_text())
    assert result["hub"]["commit"] == hub.commits("me/half")[-1]

    (offline,) = (run / "wandb").glob("offline-run-*")
    written = {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and not path.is_symlink()}
    written |= {"console": (ended.stdout + ended.stderr).encode(), "wandb": inspected(offline).encode()}
    assert b"me/half" in written["console"] and b"me/half" in written["wandb"]
    assert not [place for place, content in written.items() if TOKEN.encode() in content]

    code = [sys.executable, "-c", READ, "me/half", str(run / "export")]
    read = subprocess.run(code, env=environment() | variables, capture_output=True, text=True, timeout=240)
    assert read.returncode == 0, read.stderr
    is_same, figures = json.loads(read.stdout.splitlines()[-1])
    assert is_same
    assert figures == [result["pruned"]["perplexity"]]

    hub.asked.clear()
    again = transact_as_users_do(overrides, ranks=2, variables=variables)
    assert again.returncode == 0 and "hub: already finished" in again.stdout
    assert not hub.asked


@pytest.fixture(scope="module")
def exported(workplace: Workplace) -> list[str]:
    """The command of a finished run, which names no repository yet."""
    overrides = [*workplace.overrides("exported"), *SHORT]
    ended = transact(overrides)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return overrides


def test_a_killed_push_goes_on_where_it_was(
    hub: Hub, exported: list[str], workplace: Workplace, tmp_path: Path
) -> None:
    """Killed once one large file was there and the other on its way: that one alone is sent afterwards."""
    variables = environment() | hub.variables(tmp_path / "cache", TOKEN)
    turn, may_go_on, waiting = threading.Lock(), threading.Event(), threading.Event()

    def interrupt(request: Request) -> Answer | None:
        if request.method != "PUT" or turn.acquire(blocking=False):
            return None
        waiting.set()
        may_go_on.wait(120)
        return 500, {}, b""

    hub.interrupt = interrupt
    asked = command([*exported, "export.hub=me/killed"])
    with subprocess.Popen(
        asked, cwd=REPOSITORY, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert waiting.wait(120) and process.poll() is None
        while not hub.received:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()
    may_go_on.set()
    assert len(hub.received) == 1 and len(hub.commits("me/killed")) == 1

    hub.interrupt = lambda request: None
    ended = transact_as_users_do([*exported, "export.hub=me/killed"], variables=variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("already finished") > 5 and "hub: already finished" not in ended.stdout
    assert_complete(hub, "me/killed", workplace.folder / "exported")
    assert sorted(hub.received) == digests(workplace.folder / "exported")


def test_a_push_that_fails_says_that_the_export_is_there(
    hub: Hub, exported: list[str], workplace: Workplace, tmp_path: Path
) -> None:
    """The right to write was taken away during the job: no attempt more, and the same command goes on."""
    variables, run = hub.variables(tmp_path / "cache", TOKEN), workplace.folder / "exported"
    hub.interrupt = failing(403, times=1)
    ended = transact_as_users_do([*exported, "export.hub=me/failed"], variables=variables)
    assert ended.returncode == 1
    told = next(line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert "failed in hub: the push to export.hub='me/failed' failed (" in told
    assert f"the export is complete in {str(run / 'export')!r}, and once that is settled, the same command" in told
    assert json.loads((run / "result.json").read_text())["pruned"]
    assert "once more" not in ended.stdout and TOKEN not in ended.stdout + ended.stderr
    assert json.loads((run / "run.json").read_text())["state"] == "failed"

    ended = transact_as_users_do([*exported, "export.hub=me/failed"], variables=variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_complete(hub, "me/failed", run)


def test_a_file_of_an_earlier_command_that_is_gone_is_nothing_that_is_pushed(
    hub: Hub, exported: list[str], workplace: Workplace, tmp_path: Path
) -> None:
    """Nobody would make it again."""
    variables, run = hub.variables(tmp_path / "cache", TOKEN), workplace.folder / "exported"
    for file in run.glob("gguf/*"):
        file.unlink()
    ended = transact_as_users_do([*exported, "export.gguf=none", "export.hub=me/less"], variables=variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_complete(hub, "me/less", run)


@pytest.mark.parametrize(
    ("token", "settings", "reason"),
    [
        (None, [], "there is no token"),
        ("hf_read", [], "the token may only read"),
        (TOKEN, ["export.hub=me/public"], "it is public, and export.hub_private=true"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_any_work(
    token: str | None, settings: list[str], reason: str, hub: Hub, workplace: Workplace, tmp_path: Path
) -> None:
    hub.add("models", "me/public", {"README.md": b"# Public"})
    asked = [*workplace.overrides("refused"), "export.hub=me/half", *settings]
    ended = transact_as_users_do(asked, variables=hub.variables(tmp_path / "cache", token))
    assert ended.returncode == 2, ended.stdout + ended.stderr
    (told,) = ended.stderr.splitlines()
    assert told.startswith("error: export.hub='") and "cannot be pushed to" in told and reason in told
    assert token is None or token not in told
    assert not (workplace.folder / "refused").exists()
    assert not hub.private and len(hub.commits("me/public")) == 1
