"""Text behind URLs has the documents of local files in their order: on a server of the S3 API, and on the hub."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from tests.support import hub, s3
from tests.support.commands import Workplace, environment, transact, transact_as_users_do
from transact.config.inputs import TextConfig
from transact.data import remote_files
from transact.data.rows import LeftOut
from transact.data.text import check_text, documents, shared_file, text_files, text_identity
from transact.stages.text_checks import check_apart

TEXTS = [
    f"row {n} ☃ " + " ".join(hashlib.sha256(bytes([k % 256, n % 256])).hexdigest() for k in range(9))
    for n in range(1500)
]
TEXTS += ["a line longer than what is read at once " * 9000, "the last one"]


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": each, "id": n}) + "\n" for n, each in enumerate(texts)).encode()


def tabular(kind: str) -> bytes:
    table, written = pyarrow.table({"text": TEXTS, "other": TEXTS}), io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, written, row_group_size=300)
    else:
        writers = {"stream": pyarrow.ipc.new_stream, "file": pyarrow.ipc.new_file}
        with writers[kind](written, table.schema) as writer:
            writer.write_table(table, max_chunksize=400)
    return written.getvalue()


def comma_separated() -> bytes:
    written = io.StringIO()
    csv.writer(written).writerows([["id", "text"], *enumerate(TEXTS)])
    return written.getvalue().encode()


FILES = {
    "a.jsonl": json_lines(TEXTS),
    "a.json.gz": gzip.compress(json_lines(TEXTS)),
    "a.jsonl.zst": pyarrow.compress(json_lines(TEXTS), "zstd", asbytes=True),
    "a.csv": comma_separated(),
    "a.csv.bz2": bz2.compress(comma_separated()),
    "a.txt": "\n".join(TEXTS).encode(),
    "a.parquet": tabular("parquet"),
    "a.arrow": tabular("stream"),
    "b.arrow": tabular("file"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[s3.Store]:
    with s3.serving() as store:
        yield store


@pytest.fixture
def store(server: s3.Store, monkeypatch: pytest.MonkeyPatch) -> s3.Store:
    for name, value in server.variables().items():
        monkeypatch.setenv(name, value)
    return server


def put(files: dict[str, bytes], bucket: str) -> None:
    import s3fs

    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.mkdir(bucket)
    for name, content in files.items():
        system.pipe(f"{bucket}/{name}", content)


def config_of(*files: object) -> TextConfig:
    return TextConfig(source="files", files=[str(each) for each in files])


def read(*files: object) -> list[str]:
    config = config_of(*files)
    check_text(config, "data.train")
    return list(documents(config, "data.train", LeftOut()))


def write(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def test_documents_and_their_order_are_those_of_local_files(store: s3.Store, tmp_path: Path) -> None:
    """Of every kind by itself, and of all together by patterns; no file is transferred much more than once."""
    write(FILES, tmp_path)
    put(FILES, "kinds")
    for name, content in FILES.items():
        before = store.bytes_asked(f"/kinds/{name}")
        assert read(f"s3://kinds/{name}") == read(tmp_path / name), name
        # A part of JSON lines asks for a quarter more, and what is looked at first is read anew; an Arrow file of the
        # second format begins with its end.
        first = remote_files.STREAM_BYTES if name == "b.arrow" else 0
        assert store.bytes_asked(f"/kinds/{name}") - before < 1.3 * len(content) + 4 * 65_536 + 400_000 + first, name
    assert read("s3://kinds/*.jsonl*", "s3://kinds/?.[p]arquet") == read(tmp_path / "*.jsonl*", tmp_path / "*.parquet")


def test_files_of_one_name_in_several_folders_keep_their_order(store: s3.Store, tmp_path: Path) -> None:
    files = {f"{folder}/same.jsonl": json_lines([f"{folder}{n}" for n in range(9)]) for folder in ("a", "a-b", "b")}
    write(files, tmp_path)
    put(files, "folders")
    assert read("s3://folders/**/*.jsonl") == read(tmp_path / "**/*.jsonl")


def test_no_more_is_transferred_than_is_read(store: s3.Store) -> None:
    """A few documents of a large file cost a part of it."""
    put({"large.jsonl": json_lines(TEXTS * 10), "large.parquet": tabular("parquet")}, "large")
    for name in ("large.jsonl", "large.parquet"):
        config = config_of(f"s3://large/{name}")
        assert len(list(islice(documents(config, "data.train"), 4))) == 4
        assert store.bytes_asked(f"/large/{name}") < text_files(config, "data.train")[0].stat().st_size / 2


def test_what_a_store_depends_on(store: s3.Store, tmp_path: Path) -> None:
    """The URL, the size and the store's digest: the MD5 of what was put there."""
    put({"a.txt": b"some words"}, "identity")
    digest = hashlib.md5(b"some words").hexdigest()
    found = text_identity(config_of("s3://identity/*.txt"), "data.train")["files"]
    assert found == [["s3://identity/a.txt", 10, f'"{digest}"']]
    assert text_identity(config_of("s3://identity/a.txt"), "data.train")["files"] == found


def test_a_copy_is_seen_wherever_it_is(store: s3.Store, tmp_path: Path) -> None:
    content = json_lines(TEXTS)
    files = {"a.jsonl": content, "copy.jsonl": content, "other.jsonl": b"x" + content[1:]}
    put(files, "copies")
    write(files, tmp_path)
    one, copy, other = text_files(config_of("s3://copies/*"), "data.train")
    local = text_files(config_of(tmp_path / "a.jsonl"), "data.train")[0]
    assert shared_file([other, one], [one]) == (one, one) and shared_file([one], [other, copy]) == (one, copy)
    assert shared_file([local], [other, copy]) == (local, copy) and shared_file([one, local], [other]) is None
    with pytest.raises(ValueError, match=r"^data\.evaluation\.files: 's3://copies/copy\.jsonl' is trained on too as '"):
        check_apart(config_of(tmp_path / "a.jsonl"), "data.train", config_of("s3://copies/copy*"), "data.evaluation")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://nowhere/a.jsonl", "names no file: FileNotFoundError: The specified bucket does not exist"),
        ("s3://nowhere/*.jsonl", "names no file: FileNotFoundError: The specified bucket does not exist"),
        ("s3://refused/absent.jsonl", "names no file: FileNotFoundError: refused/absent.jsonl"),
        ("s3://refused/absent*.jsonl", "names no file: FileNotFoundError: refused/absent*.jsonl"),
        ("s3://refused/folder", "it is a folder; add /*.jsonl or the like"),
        ("s3://private/a.jsonl", "cannot be read: PermissionError: "),
        ("s3://private/*.jsonl", "cannot be read: PermissionError: "),
        ("s3://refused/folder/empty.jsonl", "is empty"),
        ("s3://refused/folder/a.pdf", "is not one of .txt, "),
        ("s3://refused/folder/other.jsonl", "text_field='text' is not in"),
        ("s3://refused/folder/damaged.parquet", "is not a complete parquet file"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(url: str, words: str, store: s3.Store) -> None:
    store.private.add("private")
    if "refused" not in {each.split("/")[1] for _, each, _ in store.asked}:
        files = {"a.pdf": b"x", "empty.jsonl": b"", "other.jsonl": b'{"body": "x"}\n', "damaged.parquet": b"PAR1xxxx"}
        put({f"folder/{name}": content for name, content in files.items()}, "refused")
    with pytest.raises(ValueError, match=rf"^data\.train\.(files: |text_field=).*'{re.escape(url)}'") as refused:
        check_text(config_of(url), "data.train")
    assert words in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_what_fails_in_the_middle_is_said_in_one_line(store: s3.Store) -> None:
    """As where credentials end; parquet's reader, and what decompresses, do not say that the file is damaged."""
    names = ["a.jsonl", "a.jsonl.zst", "a.parquet", "a.csv", "a.arrow"]
    put({name: FILES[name] for name in names}, "leaving")
    for name in names:
        found = documents(config_of(f"s3://leaving/{name}"), "data.train")
        path = f"'s3://leaving/{name}'"
        store.private.add("leaving")
        with pytest.raises(
            ValueError, match=rf"^data\.train\.files: {re.escape(path)} cannot be read: PermissionError: "
        ):
            list(found)
        store.private.clear()


def test_a_store_that_does_not_answer(store: s3.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(
        ValueError, match=r"^data\.train\.files: 's3://gone/\*\.txt' cannot be read: EndpointConnection"
    ):
        check_text(config_of("s3://gone/*.txt"), "data.train")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_run_tokenises_a_bucket_as_it_does_local_files(store: s3.Store, workplace: Workplace) -> None:
    """The tokens are the same, no credential is written, and what is wrong is said before anything is."""
    put({"train.txt": workplace.train.read_bytes(), "heldout.txt": workplace.heldout.read_bytes()}, "run")
    remote = ["data.train.files=[s3://run/t*.txt]", "data.evaluation.files=[s3://run/heldout.txt]"]
    tokens = {}
    for name, files, run in (("local", [], transact), ("remote", remote, transact_as_users_do)):
        folder = workplace.folder / f"tokens_{name}"
        asked = [*workplace.overrides(name), *files, "mode=tokenize", f"data.token_store={folder}"]
        ended = run(asked)
        assert ended.returncode == 0, ended.stderr
        tokens[name] = {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*/tokens.*")}
        written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        assert s3.SECRET not in ended.stdout + ended.stderr and not any(s3.SECRET.encode() in each for each in written)
    assert len(tokens["local"]) == 2 and tokens["remote"] == tokens["local"]
    ended = transact_as_users_do([*workplace.overrides("estimate"), *remote, "mode=estimate"])
    assert ended.returncode == 0 and "problem: " not in ended.stdout, ended.stdout + ended.stderr
    ended = transact_as_users_do([*workplace.overrides("gone"), *remote, "data.train.files=[s3://nowhere/*.txt]"])
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: data.train.files: 's3://nowhere/*.txt' names no file: ")
    assert not (workplace.folder / "gone").exists()


READ = """
import json, sys
from transact.config.inputs import TextConfig
from transact.data.text import check_text, documents, text_identity
text = TextConfig(source="files", files=["hf://datasets/ours/rows/data/*"])
check_text(text, "data.train")
print(json.dumps([list(documents(text, "data.train")), text_identity(text, "data.train")["files"]]))
"""


def test_files_of_the_hub(tmp_path: Path) -> None:
    files = {"data/a.parquet": tabular("parquet"), "data/b.jsonl.gz": gzip.compress(json_lines(TEXTS))}
    write(files, tmp_path)
    with hub.serving() as served:
        served.add("datasets", "ours/rows", files)
        variables = environment() | served.variables(tmp_path / "home")
        ended = subprocess.run(
            [sys.executable, "-c", READ], env=variables, capture_output=True, text=True, timeout=240, check=False
        )
    assert ended.returncode == 0, ended.stderr
    found, identity = json.loads(ended.stdout)
    assert found == read(tmp_path / "data/*")
    assert [each[:2] for each in identity] == [[f"hf://datasets/ours/rows/{n}", len(c)] for n, c in files.items()]
    assert all(each[2] for each in identity)
