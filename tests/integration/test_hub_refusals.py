"""Who may push where, asked of the hub by its real client; each case in one process, which has no other hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import REPOSITORY, environment
from tests.support.hub import Account, Answer, Hub, Request, serving

ASK = """
import json, os, sys
from transact.export.hub import Repository, check_push, push

for token, name, private, is_pushed in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    repository = Repository(name=name, private=private)
    try:
        check_push(repository)
        said = push(repository, {"a.txt": name}, "a file") if is_pushed else None
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps(said))
"""
ACCOUNTS = {
    "hf_writes": Account(name="me", orgs={"team": "write", "readers": "read"}),
    "hf_reads": Account(name="me", role="read"),
    "hf_fine": Account(name="me", role="fineGrained", orgs={"team": "write"}, scopes=("team",)),
}


def asked(hub: Hub, tmp_path: Path, cases: list[Any], **variables: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(cases)],
        cwd=REPOSITORY,
        env=os.environ | environment() | hub.variables(tmp_path) | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refusal(name: str, reason: str) -> str:
    return f"Refusal: export.hub={name!r} cannot be pushed to: {reason}"


def test_rights(tmp_path: Path) -> None:
    """By the account, its role in an organisation and the token's scopes; where a repository exists, by the hub."""
    with serving() as hub:
        hub.accounts |= ACCOUNTS
        for name in ("team/there", "readers/there"):
            hub.add("models", name, {"README.md": b"# There"})
            hub.private.add(name)
        cases = {
            ("hf_writes", "me/new"): None,
            ("hf_writes", "team/new"): None,
            ("hf_writes", "team/there"): None,
            ("hf_fine", "team/new"): None,
            ("hf_fine", "team/there"): None,
            ("hf_writes", "readers/new"): "'me' is logged in, who may write to 'me', 'team'",
            ("hf_writes", "readers/there"): "it exists, and 'me', with this token, may not write to it",
            ("hf_fine", "me/new"): "the token is fine-grained, and may not write to repositories of 'me': ",
            ("hf_reads", "me/new"): "the token may only read: ",
            ("hf_unknown", "me/new"): "Invalid user token.",
            ("", "me/new"): "there is no token: `hf auth login`, or set HF_TOKEN ",
        }
        found = asked(hub, tmp_path, [(token, name, True, False) for token, name in cases])
        for ((token, name), reason), said in zip(cases.items(), found, strict=True):
            assert said is None if reason is None else said.startswith(refusal(name, reason)), (token, name, said)
            assert not token or token not in str(said)
        assert not [each for each in hub.asked if not each.startswith("GET")], "nothing is created by asking"


def test_nobodys_repository_changes_sides(tmp_path: Path) -> None:
    """A public one is pushed to where that is said, and stays public; a private one is never made public."""
    with serving() as hub:
        hub.accounts |= ACCOUNTS
        for name in ("me/public", "me/private"):
            hub.add("models", name, {"README.md": b"# There", "model.safetensors": b"old", "notes.txt": b"kept"})
        hub.private.add("me/private")
        cases = [("me/public", True), ("me/public", False), ("me/private", False), ("me/private", True)]
        cases += [("me/new_private", True), ("me/new_public", False)]
        refused, *pushed = asked(hub, tmp_path, [("hf_writes", name, private, True) for name, private in cases])
        assert refused.startswith(refusal("me/public", "it is public, and export.hub_private=true: "))
        assert [each["private"] for each in pushed] == [False, True, True, True, False]
        assert hub.private == {"me/private", "me/new_private"}
        for name in ("me/public", "me/private"):  # weights of an earlier model would be loaded in place of new ones
            assert hub.files(name) == {"README.md": b"# There", "notes.txt": b"kept", "a.txt": name.encode()}


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set: "),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub does not answer: "),  # with a proxy, of which NO_PROXY tells
        ({"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": ""}, "the hub does not answer: "),
    ],
)
def test_without_a_hub(variables: dict[str, str], reason: str, tmp_path: Path) -> None:
    with serving() as hub:
        (said,) = asked(hub, tmp_path, [("hf_writes", "me/new", True, False)], **variables)
        assert said.startswith(refusal("me/new", reason))
        assert not hub.asked


def test_the_token_of_the_login_file_counts(tmp_path: Path) -> None:
    """And a hub that is out of order is no reason to believe that all is well."""
    (tmp_path / "token").write_text("hf_reads")
    with serving() as hub:
        hub.accounts |= ACCOUNTS

        def out_of_order(request: Request) -> Answer | None:
            return (503, {}, b"") if request.path.startswith("api/models") else None

        hub.interrupt = out_of_order
        of_file, broken = asked(hub, tmp_path, [("", "me/new", True, False), ("hf_writes", "me/new", True, False)])
    assert of_file.startswith(refusal("me/new", "the token may only read: "))
    assert "503" in broken and "hf_writes" not in broken
