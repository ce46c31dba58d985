"""Text of the hub, read by the real library from a stand-in: what cannot be loaded is refused at the start."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.support.commands import REPOSITORY, Workplace, command, environment
from tests.support.hub import serving

CARD = b"""---
configs:
- config_name: small
  data_files:
  - split: train
    path: data/*.parquet
- config_name: other
  data_files: more/*.parquet
---
"""
READ = """
import json, sys
from transact.config.inputs import TextConfig
from transact.data.hub_text import check_hub_text, hub_documents
from transact.data.rows import LeftOut
for asked in json.loads(sys.argv[1]):
    text, left_out = TextConfig(source="hub", hub_id="ours/parquet") , LeftOut()
    for name, value in asked.items():
        setattr(text, name, value)
    try:
        check_hub_text(text, "data.train")
        found = list(hub_documents(text, "data.train", left_out))
    except ValueError as error:
        found = str(error)
    print(json.dumps([found, left_out.rows]))
"""


def parquet(column: str, values: list[str | None]) -> bytes:
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({column: values}), written)
    return written.getvalue()


def chats(*answers: str) -> bytes:
    """A conversation of each, and one without messages."""
    asked = {"role": "user", "content": "hi"}
    rows = [{"messages": [asked, {"role": "assistant", "content": answer}]} for answer in answers]
    written = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows, {"messages": None}]), written)
    return written.getvalue()


def long_texts(name: str) -> list[str | None]:
    """A million characters, which is half a batch of a tokenisation."""
    return [f"{name}{number} " + "some words of prose " * 500 for number in range(100)]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Environment of a process that takes the stand-in for the hub, and what was asked of it."""
    datasets = {
        "ours/parquet": {
            "README.md": CARD,
            **{f"data/{each}.parquet": parquet("text", [f"{each}1", None, f"{each}2"]) for each in "abc"},
            "more/d.parquet": parquet("body", ["words"]),
        },
        "ours/chat": {f"data/{each}.parquet": chats(f"{each}1", f"{each}2") for each in "ab"},
        "ours/long": {f"data/{each}.parquet": parquet("text", long_texts(each)) for each in "abcde"},
        "ours/script": {"script.py": b"open('executed', 'w')\n", "README.md": b"# A dataset of old\n"},
    }
    with serving() as hub:
        for name, files in datasets.items():
            hub.add("datasets", name, files)
        yield environment() | hub.variables(tmp_path_factory.mktemp("hub")), hub.asked


def test_every_way_to_name_a_dataset(hub: tuple[dict[str, str], list[str]]) -> None:
    asked = [
        {"hub_config": "small"},
        {},
        {"hub_config": "nope"},
        {"hub_config": "small", "split": "nope"},
        {"hub_config": "other"},
        {"hub_config": "small", "hub_revision": "nope"},
        {"hub_id": "ours/script"},
        {"hub_id": "ours/absent"},
        {"hub_id": "ours/chat", "messages_field": "messages"},
        {"hub_id": "ours/chat", "messages_field": "turns"},
        {"hub_config": "small", "messages_field": "text"},
        {"hub_config": "small", "text_template": "<{text}>"},
        {"hub_config": "small", "text_template": "{title} {text}"},
    ]
    ended = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(asked)], env=hub[0], capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    (read, left_out), *refused = [json.loads(line) for line in ended.stdout.splitlines()]
    read_chats, left_out_chats = refused.pop(7)
    of_template, left_out_of_template = refused.pop(-2)
    assert sorted(of_template) == sorted(f"<{each}>" for each in read) and left_out_of_template == 3
    said = [[each["content"] for each in json.loads(chat)["messages"]] for chat in read_chats]
    assert sorted(said) == [["hi", answer] for answer in ("a1", "a2", "b1", "b2")] and left_out_chats == 2
    assert sorted(read) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert {each[0] for each in read[:3]} == {"a", "b", "c"}, "a document of each file in turn"
    assert left_out == 3
    expected = ["Config name is missing", "'nope' not found", "Bad split: nope", "which has: 'body'", "Revision 'nope'"]
    expected += ["scripts are not run", "doesn't exist on the Hub"]
    expected += ["messages_field='turns' is not in", "holds a str as 'text', it must be a list of messages"]
    expected += ["text_template: 'title' is not in 'ours/parquet', which has: 'text'"]
    for (told, _), words in zip(refused, expected, strict=True):
        assert words in told
        assert told.startswith("data.train.")
        assert "\n" not in told


@pytest.mark.parametrize("mode", ["prune", "estimate"])
def test_a_script_is_refused_before_anything_is_downloaded(
    mode: str, hub: tuple[dict[str, str], list[str]], workplace: Workplace, tmp_path: Path
) -> None:
    variables, requests = hub
    begin = len(requests)
    overrides = [*workplace.overrides(f"script_{mode}"), "data.train.source=hub", "+data.train.hub_id=ours/script"]
    ended = subprocess.run(
        [sys.executable, "-m", "transact.run", *overrides, "data.train.files=[]", f"mode={mode}"],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(
        "error: data.train.hub_id='ours/script' cannot be read from the hub: it"
    )
    assert not (workplace.folder / f"script_{mode}").exists()
    assert not list(tmp_path.iterdir())
    assert not [each for each in requests[begin:] if "/models/" in each]


def test_ranks_that_tokenise_a_dataset_together_make_the_bits_of_one(
    hub: tuple[dict[str, str], list[str]], workplace: Workplace, tmp_path: Path
) -> None:
    found = []
    for ranks in (1, 2):
        folder = tmp_path / f"{ranks}"
        overrides = [*workplace.overrides("together"), f"output_dir={folder}/run", f"data.token_store={folder}/tokens"]
        overrides += ["data.train.source=hub", "+data.train.hub_id=ours/long", "data.train.files=[]", "mode=tokenize"]
        asked = command([*overrides, "recover.tokens=100000000"], ranks)
        ended = subprocess.run(asked, env=hub[0], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        stores = sorted(path for path in (folder / "tokens").iterdir() if path.is_dir())
        found.append([(store.name, (store / "tokens.bin").read_bytes()) for store in stores])
    assert found[0] == found[1] and len(found[0]) == 2
    assert max(len(tokens) for _, tokens in found[0]) > 1_000_000


def test_without_a_hub_nobody_waits_and_what_is_tokenised_is_used(workplace: Workplace, tmp_path: Path) -> None:
    """A hub that does not answer is no reason to refuse: only who needs the text finds out, in one line."""
    variables = environment() | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    overrides = [*workplace.overrides("absent"), "data.train.source=hub", "+data.train.hub_id=ours/parquet"]
    ended = subprocess.run(
        [sys.executable, "-m", "transact.run", *overrides, "data.train.files=[]"],
        env={**os.environ, **variables},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(
        "error: data.train.hub_id='ours/parquet' cannot be read from the hub"
    )
