"""URLs as files of a text, in fsspec's file system in memory: no network, and no package of a store."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import fsspec
import pytest

from transact.config.inputs import TextConfig
from transact.data import local_files
from transact.data.remote_files import remote_files
from transact.data.text import check_text, documents, shared_file, text_files

LINES = [f'{{"text": "row {number} {"x" * (number * 37 % 301)}"}}\n' for number in range(400)]


def put(name: str, content: bytes) -> str:
    fsspec.filesystem("memory").pipe(f"/{name}", content)
    return f"memory://{name}"


def config_of(*files: object) -> TextConfig:
    return TextConfig(source="files", files=[str(each) for each in files])


def test_any_place_of_a_file_is_read_as_of_one_in_memory() -> None:
    content = random.Random(0).randbytes(5000)
    (found,) = remote_files(put("places/a.jsonl", content), "data.train.files")
    chance, expected = random.Random(1), io.BytesIO(content)
    with found.open("rb", 64) as file:
        for _ in range(2000):
            place, count = chance.randrange(5100), chance.choice([0, 1, 63, 64, 65, 1000, -1])
            file.seek(place)
            expected.seek(place)
            assert file.read(count) == expected.read(count) and file.readline() == expected.readline()


@pytest.mark.parametrize("size", [101, 997, 10_007])
def test_the_parts_of_a_file_are_those_of_a_local_one(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a local file too, in the order of both."""
    monkeypatch.setattr(local_files, "LINES_BYTES", size)
    content = "".join(LINES).encode()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(content)
    url = put(f"parts{size}/a.jsonl", content)
    local = list(documents(config_of(tmp_path / "a.jsonl"), "data.train"))
    assert list(documents(config_of(url), "data.train")) == local and len(local) == len(LINES)
    both = list(documents(config_of(url, tmp_path / "b.jsonl"), "data.train"))
    assert both == list(documents(config_of(tmp_path / "*.jsonl"), "data.train"))


def test_a_damaged_line_is_named_by_its_byte() -> None:
    """To count the lines before it, a file would be transferred once more."""
    sound = "".join(LINES).encode()
    url = put("damaged/a.jsonl", sound + b"[]\n")
    with pytest.raises(
        ValueError, match=rf"^data\.train\.files: '.*' does not hold .*, in the line at byte {len(sound):,}$"
    ):
        list(documents(config_of(url), "data.train"))


def test_a_pattern_finds_what_comes_later() -> None:
    """In a process that goes on, as an editor's does: only what was found is remembered."""
    config = config_of("memory://later/*.jsonl")
    with pytest.raises(ValueError, match=r"^data\.train\.files: 'memory://later/\*\.jsonl' names no file"):
        check_text(config, "data.train")
    put("later/a[1].jsonl", LINES[0].encode())
    check_text(config, "data.train")
    assert [file.name for file in text_files(config_of("memory://later/a[1].jsonl"), "data.train")] == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("protocol", "package", "extra"), [("s3", "s3fs", "s3"), ("s3a", "s3fs", "s3"), ("gs", "gcsfs", "gs")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    protocol: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = (
        rf"^data\.train\.files: '{protocol}://b/a\.txt' needs the package {package}: pip install 'transact\[{extra}\]'$"
    )
    with pytest.raises(ValueError, match=words):
        check_text(config_of(f"{protocol}://b/a.txt"), "data.train")


def test_a_protocol_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match=r"^data\.train\.files: 'nope://b/a\.txt' cannot be read: Protocol not known"):
        check_text(config_of("nope://b/a.txt"), "data.train")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:hidden@bucket/a.jsonl",
        "s3://KEY:hid/den@bucket/a.jsonl",
        "ftp://me:hidden@host/a.jsonl",
        "https://hidden@host/a.jsonl",
        "HTTPS://host/a.jsonl?signature=hidden",
        "simplecache::s3://KEY:hidden@bucket/a.jsonl",
        "zip://a.jsonl::https://hidden@host/a.zip",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.\*\.files='\(not shown\)' is not allowed: ") as refused:
        config_of("fine.txt", url)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "path",
    [
        "s3://bucket/a?[0-9]*.jsonl",
        "hf://datasets/owner/name@main/a.jsonl",
        "abfs://container@account/a.jsonl",
        "webhdfs://host:9870/a@b.jsonl",
        "folder/a::b@c.txt",
    ],
)
def test_other_urls_and_paths_hold_no_credentials(path: str) -> None:
    assert config_of(path).files == [path]


def test_remote_files_are_looked_into_on_the_first_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others know them by their URLs."""
    one, copy = (remote_files(put(f"ranks/{name}.txt", b"same words"), "data.train.files") for name in ("a", "b"))
    assert shared_file(one, copy) == (*one, *copy)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert shared_file(one, copy) is None and shared_file(one, [*copy, *one]) == (*one, *one)
