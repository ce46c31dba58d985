"""Pages are written whatever a folder holds, whole at any time, and users' words stay words."""

from __future__ import annotations

import hashlib
import re
import threading
from html.parser import HTMLParser
from pathlib import Path
from shutil import rmtree

import pytest
import yaml

from tests.support.report_folders import LLAMA_7B, SMALL, MadeUpRun, write, write_run
from transact.files import read_json
from transact.tracking.report.command import is_live, main
from transact.tracking.report.drawing import Chart
from transact.tracking.report.run_files import read_run
from transact.tracking.report.training import speed_section, training_section
from transact.tracking.report.writing import PLOTLY, write_pages, write_run_page, write_sweep_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&%{y}"


def words_of(page: str) -> list[str]:
    """What a reader sees: texts outside of scripts and styles."""
    found: list[str] = []

    class Words(HTMLParser):
        silent = False

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.silent = tag in ("script", "style")

        def handle_endtag(self, tag: str) -> None:
            self.silent = False

        def handle_data(self, data: str) -> None:
            if not self.silent and data.strip():
                found.append(data.strip())

    Words().feed(page)
    return found


def test_the_vendored_library_is_the_one_that_is_noted() -> None:
    noted = (PLOTLY.parent / "README.md").read_text(encoding="utf-8")
    (digest,) = re.findall(r"sha256 ([0-9a-f]{64})", noted)
    content = PLOTLY.read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    (version,) = re.findall(r"version ([\d.]+)", noted)
    assert f"plotly.js (cartesian - minified) v{version}\n".encode() in content[:200]
    assert "MIT" in (PLOTLY.parent / "LICENSE").read_text(encoding="utf-8")
    assert b"</script" not in content and b"<!--" not in content  # it stands inside a script element


def test_any_file_may_be_missing_or_cut_off(tmp_path: Path) -> None:
    """A page is written after every accident to any one file, and shows what the others say."""
    folder = write_run(tmp_path / "run", MadeUpRun())
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) >= 10
    for path in paths:
        content = path.read_bytes()
        for rest in (content[: len(content) // 2], b"", b"[]", b"\xff\xff", None):
            path.unlink() if rest is None else path.write_bytes(rest)
            words = words_of(write_run_page(folder).read_text(encoding="utf-8"))
            assert "Time of every finished stage" in words or path.name == "run.json"
            assert "Redundancy" in words
            path.write_bytes(content)


def test_an_empty_folder_of_a_job_that_waits_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"job": "7"}')
    (page,) = write_pages(tmp_path)
    assert "submitted" in words_of(page.read_text(encoding="utf-8"))


def test_words_of_users_end_no_element(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", MadeUpRun(name=HOSTILE, state="failed", error=HOSTILE))
    page = write_run_page(folder).read_text(encoding="utf-8")
    assert page.count("<script>") == 2
    assert "<img" not in page.replace(PLOTLY.read_text(encoding="utf-8"), "")
    assert any(HOSTILE in each for each in words_of(page))


def test_state_and_reason_are_shown(tmp_path: Path) -> None:
    run = MadeUpRun(state="failed", done=1, error="rank 1 failed in round_02/recover: the disk is full")
    words = words_of(write_run_page(write_run(tmp_path / "run", run)).read_text(encoding="utf-8"))
    assert "failed" in words
    assert "Failed: rank 1 failed in round_02/recover: the disk is full" in words


def test_a_sweep_shows_its_points_and_links_their_pages(tmp_path: Path) -> None:
    for fraction in (0.3, 0.5):
        name = f"prune.remove_fraction={fraction},prune.round_shares=[1,2]"
        write_run(tmp_path / name, MadeUpRun(fraction=fraction))
    (tmp_path / "prune.remove_fraction=0.7,prune.round_shares=[1,2]").mkdir()
    (tmp_path / "prune.remove_fraction=0.7,prune.round_shares=[1,2]" / "job.json").write_text('{"job": "8"}')
    *points, sweep = write_pages(tmp_path)
    page = sweep.read_text(encoding="utf-8")
    assert len(points) == 3
    assert 'href="prune.remove_fraction%3D0.3%2Cprune.round_shares%3D%5B1%2C2%5D/report.html"' in page
    words = words_of(page)
    assert "A sweep of 3 points: 2 done, 1 submitted" in words
    assert {"Perplexity and parameters", "Perplexity and milliseconds of a decoding step"} <= set(words)


def test_a_point_that_is_starting_keeps_the_sweep_alive(tmp_path: Path) -> None:
    write_run(tmp_path / "prune.remove_fraction=0.3", MadeUpRun())
    write_run(tmp_path / "prune.remove_fraction=0.5", MadeUpRun(state="starting", done=0))
    page = write_sweep_page(tmp_path).read_text(encoding="utf-8")
    assert "A sweep of 2 points: 1 done, 1 starting" in words_of(page)
    assert 'class="state running"' in page and is_live(tmp_path)


def test_points_of_several_models_are_measured_against_their_own(tmp_path: Path) -> None:
    for name, geometry in (("small", SMALL), ("large", LLAMA_7B)):
        folder = write_run(tmp_path / f"model.path={name}", MadeUpRun(geometry=geometry, lowest=10 + len(name)))
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        config["model"]["path"] = f"/models/{name}"
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = words_of(write_sweep_page(tmp_path).read_text(encoding="utf-8"))
    assert "Made from large, small." in words
    assert {"parent of model.path=small", "parent of model.path=large"} <= set(words)
    shares = [words[turn + 6] for turn, word in enumerate(words) if word == "done"][1:]  # of the points
    expected = [MadeUpRun(geometry=each) for each in (LLAMA_7B, SMALL)]
    assert shares == [f"{run.shrunk(2).parameters() / run.geometry.parameters():.1%}" for run in expected]


def test_a_parent_that_was_measured_on_other_ranks_is_one(tmp_path: Path) -> None:
    for tokens, lowest in ((1000, 12.0), (4000, 12.000001)):
        write_run(tmp_path / f"recover.tokens={tokens}", MadeUpRun(lowest=lowest))
    words = words_of(write_sweep_page(tmp_path).read_text(encoding="utf-8"))
    assert "parent: parameters" in words and not [each for each in words if each.startswith("parent of ")]


def test_a_model_trained_from_random_weights_is_nobody_s_parent(tmp_path: Path) -> None:
    for rate in ("1e-3", "3e-4"):
        folder = write_run(
            tmp_path / f"recover.learning_rate={rate}",
            MadeUpRun(done=1, rounds=1, has_tasks=False, has_efficiency=False),
        )
        (folder / "config.yaml").write_text("{name: made_up, mode: pretrain, model: {path: null}}", encoding="utf-8")
        rmtree(folder / "round_01")
    *points, sweep = (words_of(page.read_text(encoding="utf-8")) for page in write_pages(tmp_path))
    assert not [each for words in (*points, sweep) for each in words if "parent" in each.lower()]
    assert "12.00" in sweep and "The trained model" in points[0]


def test_only_what_is_in_gib_is_drawn_as_memory_and_sliced_models_stand_before_training(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", MadeUpRun()))
    charts = {
        block.name: block
        for section in (speed_section(run), training_section(run))
        if section is not None
        for block in section.blocks
        if isinstance(block, Chart)
    }
    assert {row[2] for row in charts["memory"].table.rows} == {"host peak"}
    (drawing,) = charts["perplexity"].views.values()
    at = {trace["name"]: trace["x"] for trace in drawing["data"] if trace["name"].startswith("held-out")}
    assert at == {
        "held-out, sliced": [0, 40 * 4096],
        "held-out, recovered": [40 * 4096, 80 * 4096],
        "held-out, parent": [0],
    }
    assert {row[2] for row in charts["perplexity"].table.rows} > set(at)


def test_figures_of_documents_apart_are_told_from_those_of_a_stream(tmp_path: Path) -> None:
    for fraction in (0.3, 0.5):
        write_run(tmp_path / f"prune.remove_fraction={fraction}", MadeUpRun(fraction=fraction, has_tasks=False))
    folder = tmp_path / "prune.remove_fraction=0.5"
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    data = "data: {packing: documents, train: {loss: all}, evaluation: {loss: answers}}\n"
    (folder / "config.yaml").write_text(config + data, encoding="utf-8")
    dense = read_json(folder / "round_00" / "evaluation.json")["dense"]
    write(folder / "round_00/evaluation.json", {"dense": dense | {"loss_of": "answers", "packing": "documents"}})
    text = {"perplexity": 20.0, "tokens": 9, "packing": "documents"}
    write(folder / "comparison.json", {role: {"texts": {"notes": text}} for role in ("dense", "pruned")})
    stream, apart, sweep = (words_of(page.read_text(encoding="utf-8")) for page in write_pages(tmp_path))
    assert not [each for each in stream if "apart" in each]
    assert {
        "Perplexity on held-out text is that of the answers of documents apart.",
        "Perplexity on validation text is that of documents apart.",
        "perplexity of the answers of documents apart",
        "perplexity of documents apart",
    } <= set(apart)
    marked = [each for each in sweep if each.endswith(" of the answers of documents apart")]
    assert f"{folder.name} of the answers of documents apart" in marked  # a point of the chart, and its line
    assert not [each for each in sweep if "fraction=0.3 of" in each]


def test_points_that_finish_together_leave_a_whole_page_with_all(tmp_path: Path) -> None:
    """Each writes its own end first, then the sweep's page: whoever is last has seen all."""

    def finish(number: int) -> None:
        write_run(tmp_path / f"prune.remove_fraction=0.{number}", MadeUpRun(steps=4, fraction=number / 10))
        write_sweep_page(tmp_path)

    threads = [threading.Thread(target=finish, args=(number,)) for number in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A sweep of 6 points: 6 done" in words_of(page)
    assert page.endswith("</html>\n")
    assert not list(tmp_path.glob("*.tmp"))


def test_the_command_refuses_a_folder_without_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"error: '{tmp_path}' holds no run")
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path), "--seconds", "0"])
    assert main() == 2


def test_watching_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", MadeUpRun(state="running", done=1))
    assert is_live(folder)
    threading.Timer(0.5, write_run, args=(folder, MadeUpRun())).start()
    monkeypatch.setattr("sys.argv", ["report", str(folder), "--watch", "--seconds", "0.1"])
    assert main() == 0
    assert "done" in words_of((folder / "report.html").read_text(encoding="utf-8"))


def test_watching_what_goes_away_ends_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", MadeUpRun(state="running", done=1))
    monkeypatch.setattr("sys.argv", ["report", str(folder), "--watch"])
    monkeypatch.setattr("time.sleep", lambda seconds: folder.rename(tmp_path / "elsewhere"))
    assert main() == 2
    assert capsys.readouterr().err.startswith(f"error: '{folder}' holds no run")
