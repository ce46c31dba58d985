"""The Hub as the place of a finished model: who may push where, and a push that goes on where it was cut off.

The token is the client's own, from HF_TOKEN or the file of `hf auth login`. It stands in no setting, record or message.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from transact.errors import LONGEST_REASON, Refusal, one_line
from transact.models.folder import is_hub_reachable
from transact.models.model_files import COMPANION_FILES, INDEX_NAME, SINGLE_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Result = TypeVar("Result")

PAUSES_SECONDS = (2.0, 10.0, 60.0)  # between attempts; within one the client repeats uploads of its own accord
CHECK_PAUSES_SECONDS = (2.0, 5.0)
ANSWER_SECONDS, PUSH_SECONDS = 30.0, 300.0  # of silence, after which a request of the check, or of the push, has failed
PASSING = (408, 429)  # of the answers below 500, which else are the same the next time
# Of a model that was pushed there before: what stock code would load in place of this one's files, or beside them.
SUPERSEDED = [SINGLE_NAME, "model-*-of-*.safetensors", INDEX_NAME, *COMPANION_FILES]
SILENT = "the hub does not answer: check the network, and HF_ENDPOINT if it is set"
TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """Where a model goes. name: user/name. private: whether it is made private, and pushed to only if it is."""

    name: str
    private: bool

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    def refusal(self, reason: str) -> Refusal:
        return Refusal(f"export.hub={self.name!r} cannot be pushed to: {reason}")


def check_push(repository: Repository) -> None:
    """Check that the Hub would take a push from whoever is logged in; nothing is created (asks the Hub).

    Raises:
        ValueError: one line: there is no token, it may not write there, the Hub does not answer, or alike.
    """
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError

    if is_offline_mode():
        raise repository.refusal("HF_HUB_OFFLINE is set: unset it, or give export.hub later, where there is a network")
    if get_token() is None:
        raise repository.refusal(
            f"there is no token: `hf auth login`, or set HF_TOKEN to one that may write ({TOKENS})"
        )
    if not is_hub_reachable():
        raise repository.refusal(SILENT)
    try:
        with _patient(ANSWER_SECONDS):
            _check_rights(_client(), repository)
    except Refusal:
        raise
    except HfHubHTTPError as error:
        raise repository.refusal(reason_of(error)) from None
    except Exception as error:  # noqa: BLE001 - whatever else the client raises, it had no answer
        raise repository.refusal(f"{SILENT} ({reason_of(error)})") from None


def _check_rights(api: HfApi, repository: Repository) -> None:
    """Raise ValueError unless whoever is logged in may push to the repository."""
    account = retried(api.whoami, lambda text: None, pauses=CHECK_PAUSES_SECONDS)
    if _token_of(account).get("role") == "read":
        raise repository.refusal(f"the token may only read: take one that may write ({TOKENS})")
    if (is_private := _privacy(api, repository)) is None:
        _check_owner(repository, account)
    else:
        _check_privacy(repository, is_private)
        _check_access(api, repository, account)


@contextmanager
def _patient(seconds: float) -> Iterator[None]:
    """Give the hub's client a limit for the silence between two parts of an answer: its own waits for ever."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def factory() -> Any:
        client = default_client_factory()
        client.timeout = seconds
        return client

    set_client_factory(factory)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def _client() -> HfApi:
    from huggingface_hub import HfApi, get_token

    return HfApi(token=get_token(), library_name="transact")


def _token_of(account: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the Hub says of the token itself; nothing of one that is none of a user's access tokens."""
    return account.get("auth", {}).get("accessToken") or {}


def _privacy(api: HfApi, repository: Repository) -> bool | None:
    """Return whether the repository is private; None where there is none, or none that may be seen."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return bool(api.model_info(repository.name).private)
    except RepositoryNotFoundError:
        return None


def _check_privacy(repository: Repository, is_private: bool) -> None:
    """Raise ValueError if it is public and a private one was asked for: the push would publish the model."""
    if repository.private and not is_private:
        raise repository.refusal(
            "it is public, and export.hub_private=true: name another, or push to it as it is with "
            "export.hub_private=false"
        )


def _check_owner(repository: Repository, account: Mapping[str, Any]) -> None:
    """Raise ValueError unless the account, and its token, may create the repository."""
    writable = [account["name"]] + [
        each["name"] for each in account.get("orgs", []) if each.get("roleInOrg") not in ("read", "no_access")
    ]
    if repository.owner.casefold() not in map(str.casefold, writable):
        raise repository.refusal(f"{account['name']!r} is logged in, who may write to {', '.join(map(repr, writable))}")
    token = _token_of(account)
    scopes = (token.get("fineGrained") or {}).get("scoped", [])
    may_write = {
        scope["entity"].get("name", "").casefold() for scope in scopes if "repo.write" in scope.get("permissions", [])
    }
    if token.get("role") == "fineGrained" and repository.owner.casefold() not in may_write:
        raise repository.refusal(
            f"the token is fine-grained, and may not write to repositories of {repository.owner!r}: allow it that, or "
            f"take another ({TOKENS})"
        )


def _check_access(api: HfApi, repository: Repository, account: Mapping[str, Any]) -> None:
    """Raise ValueError unless the token may write to the repository, which exists."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.auth_check(repository.name, write=True)
    except HfHubHTTPError as error:
        if not is_final(error):
            raise
        raise repository.refusal(f"it exists, and {account['name']!r}, with this token, may not write to it") from None


def push(
    repository: Repository,
    files: Mapping[str, Path | str],
    message: str,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Push files to a repository, which is made if there is none, and return where they are.

    What is there already is not sent again, whether a killed push brought it or an earlier one.

    Args:
        files: by their names in the repository: a file, or the text of one.
        message: of the commit.
        say: is told why an attempt failed that is repeated.

    Raises:
        Exception: whatever the client raises in the last attempt.
    """
    with _patient(PUSH_SECONDS):
        return retried(lambda: _push_once(repository, files, message), say)


def retried(
    work: Callable[[], Result],
    say: Callable[[str], None],
    *,
    pauses: tuple[float, ...] = PAUSES_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Do the work; where it fails for a reason that may pass, repeat it after each of the pauses."""
    for pause in pauses:
        try:
            return work()
        except Exception as error:
            if is_final(error):
                raise
            say(f"{reason_of(error)}; once more in {pause:g} s")
        sleep(pause)
    return work()


def is_final(error: BaseException) -> bool:
    """Return whether the same work would fail in the same way: the request is wrong, or not allowed."""
    from huggingface_hub.errors import HfHubHTTPError

    each: BaseException | None = error
    while each is not None:
        if isinstance(each, HfHubHTTPError):
            status = each.response.status_code
            return status < 500 and status not in PASSING
        if isinstance(each, ValueError | TypeError | FileNotFoundError | PermissionError):
            return True
        each = each.__cause__
    return False


def reason_of(error: BaseException) -> str:
    """Return why a request failed, in one line; what the Hub answered stands for itself."""
    from huggingface_hub.errors import HfHubHTTPError

    return one_line(str(error) if isinstance(error, HfHubHTTPError) else error, LONGEST_REASON)


def _push_once(repository: Repository, files: Mapping[str, Path | str], message: str) -> dict[str, Any]:
    api = _client()
    url = api.create_repo(repository.name, private=repository.private, exist_ok=True)
    is_private = bool(api.model_info(repository.name).private)
    _check_privacy(repository, is_private)
    with _laid_out(files) as folder, _silent_client():
        commit = api.upload_folder(
            repo_id=repository.name, folder_path=folder, commit_message=message, delete_patterns=SUPERSEDED
        )
    missing = set(files) - set(api.list_repo_files(repository.name, revision=commit.oid))
    if missing:
        raise repository.refusal(f"its .gitignore leaves out {', '.join(sorted(missing))}")
    return {"repository": repository.name, "url": str(url), "private": is_private, "commit": commit.oid}


@contextmanager
def _laid_out(files: Mapping[str, Path | str]) -> Iterator[Path]:
    """Yield a folder with links to the files, and texts, as the repository will have them: one call pushes it whole."""
    with TemporaryDirectory(prefix="transact_hub_") as folder:
        for name, content in files.items():
            if isinstance(content, str):
                (Path(folder) / name).write_text(content, encoding="utf-8")
            else:
                (Path(folder) / name).symlink_to(content.resolve())
        yield Path(folder)


@contextmanager
def _silent_client() -> Iterator[None]:
    """Keep the client's bars and warnings of single requests off the console, which is the job's."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, were_disabled = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not were_disabled:
            enable_progress_bars()
