"""Token stores as a job finds or makes them: a damaged one is made again with the same bytes, in one line."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality import compose_config
from tests.support.commands import Workplace
from tests.support.ranks import run_on_ranks
from tests.support.token_files import write_indexed_dataset
from transact.config.run import RunConfig

if TYPE_CHECKING:
    from transact.stages.job import Job

SEQUENCES = 10_000  # more than there are
WORDS = [f"document {number} " + "of plain words, one after the other, " * 20 for number in range(60)]
SECRET = [f"zyxwv {number} " + "held out from all training, word for word, " * 20 for number in range(10)]


def write_rows(path: Path, rows: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def config_of(workplace: Workplace, folder: Path, train: list[str] = WORDS) -> RunConfig:
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "evaluation.jsonl", SECRET)
    texts = [f"data.{name}.files=[{folder}/{name}.jsonl]" for name in ("train", "evaluation")]
    return compose_config([*workplace.overrides("stores"), f"data.token_store={folder}/tokens", *texts])


@contextmanager
def on_a_rank(config: RunConfig, said: list[str]) -> Iterator[Job]:
    """Yield a job of this process, whose lines go into `said`."""
    from transact.distributed.process import process_group
    from transact.models.folder import geometry_of
    from transact.rounds import outline
    from transact.runs.run_folder import RunFolder
    from transact.stages.job import Job
    from transact.tracking.tracker import Tracker
    from transact.tracking.view import Silent

    class Heard(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    with process_group("cpu", 5) as group:
        folder = RunFolder(Path(config.output_dir))
        asked = outline(config, geometry_of(Path(config.model.path or "")))
        yield Job(config=config, group=group, folder=folder, outline=asked, tracker=Tracker(None, None), view=Heard())


def opened(config: RunConfig, model: Path, before: list[Any], held_out: bool = False) -> list[tuple[str, list[str]]]:
    """Open the training text once and then after each of `before`, on a real rank. Returns the store's folder, or the
    refusal, and what was said, of each time."""
    from transact.stages.token_stores import open_store

    said: list[str] = []
    found: list[tuple[str, list[str]]] = []
    with on_a_rank(config, said) as job:
        for act, path in [(None, None), *before]:
            said.clear()
            if act is not None:
                act(Path(path))
            apart = (
                frozenset(
                    open_store(job, "data.evaluation", config.data.evaluation, model, SEQUENCES).documents().tolist()
                )
                if held_out
                else ()
            )
            try:
                store = open_store(job, "data.train", config.data.train, model, SEQUENCES, held_out=frozenset(apart))
                found.append((str(store.folder), [*said]))
            except ValueError as error:
                found.append((str(error), [*said]))
    return found


def overlap_of(config: RunConfig, model: Path, own: Path, other: Path) -> tuple[float, int]:
    """Return the share of the evaluation text that the training text has, and how often this run looked for it.

    own, other: files by which two runs wait for each other.
    """
    from unittest.mock import patch

    from transact.data.overlap import Windows
    from transact.stages.overlap import measure_overlap
    from transact.stages.token_stores import open_store

    look_in, looked = Windows.look_in, list[Windows]()

    def slowly(self: Windows, *arguments: Any) -> None:
        looked.append(self)
        time.sleep(0.05)
        look_in(self, *arguments)

    with on_a_rank(config, []) as job, patch.object(Windows, "look_in", slowly):
        names = {"data.evaluation": config.data.evaluation, "data.train": config.data.train}
        stores = {name: open_store(job, name, text, model, SEQUENCES) for name, text in names.items()}
        held_out = {"data.evaluation": stores.pop("data.evaluation")}
        own.touch()
        while not other.exists():
            time.sleep(0.01)
        return measure_overlap(job, held_out, stores)["data.evaluation"], len(looked)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_last(path: Path) -> None:
    flip(path, -2)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


DAMAGES: list[Callable[[Path], None]] = [flip_first, flip_last, cut, extend, link, Path.unlink]
FILES = ("tokens.bin", "index.json", "documents.bin")


def test_a_damaged_store_is_made_again_with_the_same_bytes(workplace: Workplace, tmp_path: Path) -> None:
    config = config_of(workplace, tmp_path)
    ((first, _),) = run_on_ranks(1, opened, config, workplace.model, [])[0]
    sound = bytes_of(Path(first))
    damages = [(damage, Path(first) / name) for name in FILES for damage in DAMAGES]
    ends = run_on_ranks(1, damaged_and_compared, config, workplace.model, damages, sound)[0]
    assert len(ends) == len(damages)
    for (damage, path), (folder, said, is_same) in zip(damages, ends, strict=True):
        assert folder == first and is_same, (damage, path.name)
        damaged = [line for line in said if "is damaged and made again: " in line]
        assert len(damaged) == 1 and "\n" not in damaged[0] and first in damaged[0], (damage, path.name)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [Path(first).name]


def damaged_and_compared(
    config: RunConfig, model: Path, damages: list[Any], sound: dict[str, bytes]
) -> list[tuple[str, list[str], bool]]:
    same: list[bool] = []
    folder = damages[0][1].parent

    def compare_then(damage: Callable[[Path], None]) -> Callable[[Path], None]:
        def act(path: Path) -> None:
            same.append(bytes_of(folder) == sound)
            damage(path)

        return act

    ends = opened(config, model, [(compare_then(damage), path) for damage, path in damages])
    same.append(bytes_of(folder) == sound)
    assert not ends[0][1] and same[0]  # found, and nothing said, before the first damage
    return [(*end, is_same) for end, is_same in zip(ends[1:], same[1:], strict=True)]


def test_an_indexed_dataset_named_tokens_is_no_damaged_store(workplace: Workplace, tmp_path: Path) -> None:
    write_indexed_dataset(tmp_path / "tokens", [[5, 6, 7] * 50] * 20)
    of_tokens = ["data.train.source=tokens", f"data.train.files=[{tmp_path}/tokens]"]
    of_tokens += [f"data.train.tokenizer={workplace.model}", f"data.token_store={tmp_path}/stores"]
    config = compose_config([*workplace.overrides("stores"), *of_tokens])
    ((made, _),) = run_on_ranks(1, opened, config, workplace.model, [])[0]
    assert (Path(made) / "tokens.bin").is_file()


def test_a_damaged_store_that_is_given_as_tokens_is_refused(workplace: Workplace, tmp_path: Path) -> None:
    ((made, _),) = run_on_ranks(1, opened, config_of(workplace, tmp_path), workplace.model, [])[0]
    given = Path(made).rename(tmp_path / "given")
    of_tokens = ["data.train.source=tokens", f"data.train.files=[{given}]"]
    files = [f"data.evaluation.files=[{tmp_path}/evaluation.jsonl]", f"data.token_store={tmp_path}/again"]
    config = compose_config([*workplace.overrides("stores"), *files, *of_tokens])
    damages = [(flip_last, given / "tokens.bin")]
    flip_last(given / "tokens.bin")
    (refusal, _), (again, _) = run_on_ranks(1, opened, config, workplace.model, damages)[0]
    assert refusal.startswith(f"data.train.files: the token store '{given}' is damaged: tokens.bin")
    assert (Path(again) / "tokens.bin").read_bytes() == (given / "tokens.bin").read_bytes()


def add_note(path: Path) -> None:
    (path / "notes.txt").write_text("mine")
    flip_first(path / "tokens.bin")


def test_a_store_with_a_users_file_loses_nothing(workplace: Workplace, tmp_path: Path) -> None:
    config = config_of(workplace, tmp_path)
    ((first, _),) = run_on_ranks(1, opened, config, workplace.model, [])[0]
    _, (refusal, _) = run_on_ranks(1, opened, config, workplace.model, [(add_note, first)])[0]
    assert refusal.startswith(f"data.token_store: '{first}' is no token store: it is or holds 'notes.txt'")
    assert {path.name for path in Path(first).iterdir()} == {*FILES, "notes.txt"}


def test_tokens_beyond_the_vocabulary_are_refused(workplace: Workplace, tmp_path: Path) -> None:
    """The largest id that the text has, not that the tokenizer could make; asked of a store that is found, too."""
    model = Path(shutil.copytree(workplace.model, tmp_path / "model"))
    config = config_of(workplace, tmp_path)
    ((first, _),) = run_on_ranks(1, opened, config, model, [])[0]
    largest = json.loads((Path(first) / "index.json").read_text())["largest_token"]
    described = json.loads((model / "config.json").read_text())
    for size, is_refused in ((largest + 1, False), (largest, True), (2, True)):
        (model / "config.json").write_text(json.dumps(described | {"vocab_size": size}))
        ((end, _),) = run_on_ranks(1, opened, config, model, [])[0]
        expected = f"makes token {largest}, the model has tokens 0 to {size - 1} (vocab_size={size})"
        assert (expected in end) if is_refused else end == first


def test_what_a_tokenisation_left_that_did_not_end_is_removed_and_nothing_else(
    workplace: Workplace, tmp_path: Path
) -> None:
    """Of another text, once nobody has written to it for a while; never what is a user's."""
    root, text = tmp_path / "tokens", tmp_path / "train.jsonl"
    config = config_of(workplace, tmp_path)
    ((first, _),) = run_on_ranks(1, opened, config, workplace.model, [])[0]
    shutil.move(first, tmp_path / "sound")
    times, sound = (text.stat().st_atime_ns, text.stat().st_mtime_ns), text.read_bytes()
    text.write_bytes(sound[:-2] + b"\0\n")
    os.utime(text, ns=times)
    ((refusal, _),) = run_on_ranks(1, opened, config, workplace.model, [])[0]
    assert "does not hold one JSON object" in refusal
    assert not any(root.iterdir())  # one that fails clears up behind itself; one that is killed cannot
    text.write_bytes(sound)
    os.utime(text, ns=times)

    old, young = root / ("a" * 20), root / ("b" * 20)
    for folder in (old, young):
        folder.with_suffix(".tmp").mkdir()
        (folder.with_suffix(".tmp") / "tokens.bin").write_bytes(bytes(100))
        folder.with_suffix(".lock").touch()
    for path in (old.with_suffix(".tmp") / "tokens.bin", old.with_suffix(".tmp")):
        os.utime(path, (time.time() - 8 * 86_400,) * 2)
    kept = {"x.tmp", "x.lock", f"{'c' * 19}.tmp", "notes.txt"}
    for name in kept:
        (root / name).write_text("mine")
    (root / "folder.tmp").mkdir()

    ((again, _),) = run_on_ranks(1, opened, config, workplace.model, [])[0]
    assert again == first and bytes_of(Path(first)) == bytes_of(tmp_path / "sound")
    assert {path.name for path in root.iterdir()} == kept | {Path(first).name, "folder.tmp", f"{young.name}.tmp"}


def test_documents_that_are_held_out_are_not_trained_on(workplace: Workplace, tmp_path: Path) -> None:
    """Nor after the store was damaged; most of the held-out ones in the training text: refused."""
    config = config_of(workplace, tmp_path, [*WORDS[:30], SECRET[3], *WORDS[30:], SECRET[5]])
    ends = run_on_ranks(1, opened, config, workplace.model, [(flip_tokens, tmp_path / "tokens")], True)[0]
    assert ends[0][0] == ends[1][0]
    for folder, said in ends:
        assert "data.train: 2 documents of data.evaluation stand in it too and are not trained on" in said
        assert json.loads((Path(folder) / "index.json").read_text())["documents_left_out"] == 2
    ((without, _),) = run_on_ranks(1, opened, config_of(workplace, tmp_path), workplace.model, [], True)[0]
    counted = [json.loads((Path(each) / "index.json").read_text())["documents"] for each in (ends[0][0], without)]
    assert counted == [len(WORDS)] * 2

    config_of(workplace, tmp_path, [*WORDS, *SECRET[:6]])
    ((refusal, _),) = run_on_ranks(1, opened, config, workplace.model, [], True)[0]
    assert refusal.startswith("data.train holds 6 of the 10 documents of data.evaluation word for word")


def flip_tokens(root: Path) -> None:
    for path in root.glob("*/tokens.bin"):
        flip_first(path)


def test_of_runs_that_look_for_the_same_held_out_text_at_once_one_does(workplace: Workplace, tmp_path: Path) -> None:
    config = config_of(workplace, tmp_path, [*WORDS, *SECRET[:5]])
    with ThreadPoolExecutor() as threads:
        places = [tmp_path / "one", tmp_path / "two"]
        runs = [
            threads.submit(run_on_ranks, 1, overlap_of, config, workplace.model, *each)
            for each in (places, places[::-1])
        ]
        ((first, looked), (second, again)) = (run.result()[0] for run in runs)
    assert first == second > 0.4
    assert min(looked, again) == 0 < max(looked, again)
    assert [path.suffix for path in (tmp_path / "tokens").iterdir() if path.is_file()] == [".json"]
