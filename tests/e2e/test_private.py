"""What a run leaves behind is nobody else's business: no secret of the environment, no file mode of its own."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import SECRETS, UMASKS, ChainRun
from tests.support.wandb_files import inspected


def everything(run: ChainRun) -> list[Path]:
    roots = [run.folder, run.token_store]
    return roots + [path for root in roots for path in root.rglob("*") if not path.is_symlink()]


def test_no_secret_of_the_environment_is_written_or_printed(chain_commands: Mapping[int, ChainRun]) -> None:
    run = chain_commands[2]
    (offline,) = (run.folder / "wandb").glob("offline-run-*")
    written = {str(path): path.read_bytes() for path in everything(run) if path.is_file()}
    written |= {"stdout": run.ended.stdout.encode(), "stderr": run.ended.stderr.encode()}
    written["as wandb reads it"] = inspected(offline).encode()
    # The search would find them: what is meant to be there is found, in each of the places.
    for place in ("stdout", "as wandb reads it", str(run.folder / "config.yaml"), str(run.folder / "result.json")):
        assert b"ranks_2" in written[place], place
    assert {Path(name).suffix for name in written} >= {".wandb", ".out", ".json", ".jsonl", ".yaml", ".safetensors"}
    for name, secret in SECRETS.items():
        assert not [place for place, content in written.items() if secret.encode() in content], name


@pytest.mark.parametrize("ranks", UMASKS)
def test_files_have_the_mode_that_the_user_asked_for(chain_commands: Mapping[int, ChainRun], ranks: int) -> None:
    """Temporary files that were renamed too, and the text's, the logs', the lock and W&B's, but those that W&B keeps
    for the owner alone until they are uploaded."""
    others = {}
    for path in everything(chain_commands[ranks]):
        if "staging" in path.parts and path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o400
            continue
        found = stat.S_IMODE(path.stat().st_mode)
        if found != (0o777 if path.is_dir() else 0o666) & ~UMASKS[ranks]:
            others[str(path)] = oct(found)
    assert not others
