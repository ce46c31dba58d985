"""The setting export.hub, and which failures of a push are worth another attempt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from tests.support.configs import compose_config
from transact.config.outputs import ExportConfig
from transact.config.setting import allowed_in, fields_of
from transact.export.hub import PAUSES_SECONDS, Repository, is_final, retried
from transact.stages.hub import check_push_to_hub


def answered(status: int) -> HfHubHTTPError:
    request = httpx2.Request("POST", "https://hub/api")
    return HfHubHTTPError(f"{status} of the hub", response=httpx2.Response(status, request=request))


def caused_by(cause: Exception) -> RuntimeError:
    """As the client wraps what a thread of it met."""
    error = RuntimeError("Error while uploading 'a' to the Hub.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (answered(503), False),
        (answered(500), False),
        (answered(429), False),
        (answered(408), False),
        (httpx2.ConnectError("refused"), False),
        (httpx2.ReadTimeout("slow"), False),
        (ConnectionResetError("gone"), False),
        (caused_by(answered(502)), False),
        (answered(403), True),
        (answered(401), True),
        (answered(404), True),
        (answered(413), True),
        (caused_by(answered(403)), True),
        (ValueError("no such file"), True),
        (FileNotFoundError("export"), True),
    ],
)
def test_what_may_pass(error: Exception, final: bool) -> None:
    assert is_final(error) == final


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return work


def test_pauses_grow_and_each_is_told() -> None:
    slept: list[float] = []
    said: list[str] = []
    errors = [answered(503), httpx2.ConnectError("refused"), answered(500)]
    assert retried(failing(*errors), said.append, sleep=slept.append) == "done"
    assert slept == list(PAUSES_SECONDS) == sorted(slept)
    assert [text.rpartition("; ")[2] for text in said] == [f"once more in {pause:g} s" for pause in slept]
    assert "503 of the hub" in said[0] and "refused" in said[1]


def test_the_last_attempt_is_the_last_and_a_final_one_the_only_one() -> None:
    slept: list[float] = []
    with pytest.raises(HfHubHTTPError, match="504 of the hub"):
        retried(failing(*map(answered, (500, 500, 503, 504, 500))), str, sleep=slept.append)
    assert len(slept) == len(PAUSES_SECONDS)
    with pytest.raises(HfHubHTTPError, match="403"):
        retried(failing(answered(403)), str, sleep=slept.append)
    assert len(slept) == len(PAUSES_SECONDS)


@pytest.mark.parametrize(
    "name",
    ["me/half", "Me-2/a.b_c", "_a/b_", "me/a--b", "me/a..b", "me/a.git", "me/.a", "me/a.", "-me/a", "me-/a", "a/b/c",
     "me", "me/", "/half", "me half/a", "mé/half", "me/" + "x" * 93, "me/" + "x" * 94, "https://huggingface.co/me/half"],
)  # fmt: skip
def test_names_are_those_that_the_hubs_client_takes(name: str) -> None:
    """And always with their owner."""
    (declared,) = [declared for declared, _ in fields_of(ExportConfig) if declared.name == "hub"]
    try:
        validate_repo_id(name)
        is_one = name.count("/") == 1 and len(name) <= 96
    except HFValidationError:
        is_one = False
    assert allowed_in(declared).takes(name) == is_one


def test_a_wrong_name_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"export\.hub='half' is not allowed: it must be user/name or organisation/na"):
        compose_config(["name=a", "export.hub=half"])


def test_points_of_a_sweep_do_not_replace_each_other() -> None:
    with pytest.raises(ValueError, match=r"export\.hub='me/half' is not allowed: the points of a sweep would replace"):
        compose_config(["name=a", "share_dir=outputs/a/shared", "export.hub=me/half"])


class Asked(Exception):
    """The Hub would have been asked."""


def ask(repository: Repository) -> None:
    raise Asked


@pytest.fixture
def pushed_before(monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """Folders of runs that have begun, and the repository that each names."""
    found: dict[Path, str] = {}
    module = "transact.stages.hub"
    monkeypatch.setattr(f"{module}.check_push", ask)
    monkeypatch.setattr(f"{module}.read_config", lambda folder: {"export": {"hub": found.get(folder)}})
    monkeypatch.setattr(f"{module}.read_record", lambda folder: {"stages": {"evaluate": {}} if folder in found else {}})
    return found


def test_a_run_that_goes_on_does_not_ask_again(tmp_path: Path, pushed_before: dict[Path, str]) -> None:
    """But it does before it has begun, and where the repository is another one."""
    config = compose_config(["name=x", f"output_dir={tmp_path}", "export.hub=me/half", "recover.batch_sequences=8"])
    with pytest.raises(Asked):
        check_push_to_hub(config)
    pushed_before[tmp_path] = "me/half"
    check_push_to_hub(config)
    pushed_before[tmp_path] = "me/other"
    with pytest.raises(Asked):
        check_push_to_hub(config)


def test_a_variant_does_not_replace_its_run(tmp_path: Path, pushed_before: dict[Path, str]) -> None:
    folder = tmp_path / "variants" / "longer"
    asked = ["name=x", f"output_dir={folder}", "recover.variant=longer", "recover.batch_sequences=8"]
    pushed_before[tmp_path] = "me/half"
    with pytest.raises(ValueError, match="the run that this is a variant of is pushed there"):
        check_push_to_hub(compose_config([*asked, "export.hub=me/half"]))
    with pytest.raises(Asked):
        check_push_to_hub(compose_config([*asked, "export.hub=me/longer"]))
