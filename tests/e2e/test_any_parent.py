"""Model folders damaged in every way of a grammar: one clear line, exit code 2, nothing written, on every rank.

What headers and configuration show is judged through the command's own entry, up to the point where work begins; what
only the weights show, on two real ranks.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.quality import compose_config
from tests.support.commands import Workplace
from tests.support.judged import at_the_work, up_to_the_work
from tests.support.ranks import run_on_ranks
from transact.errors import DONE, REFUSED
from transact.launch import worker
from transact.launch.worker import work

Damage = Callable[[Path], None]
FIRST = "model-00001-of-00005.safetensors"
SECRET = "root:x:0:0"


def setting(name: str, value: Any, file: str = "config.json") -> tuple[str, Damage]:
    def damage(folder: Path) -> None:
        path = folder / file
        described = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(described | {name: value}))

    return f"{file}: {name}={str(value)[:30]}", damage


def text(file: str, content: bytes) -> tuple[str, Damage]:
    return f"{file} is {content[:12]!r}", lambda folder: (folder / file).write_bytes(content) and None


def removed(file: str) -> tuple[str, Damage]:
    return f"no {file}", lambda folder: (folder / file).unlink()


def link(file: str, target: str) -> tuple[str, Damage]:
    def damage(folder: Path) -> None:
        (folder.parent / "secret").write_text(SECRET)
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target)

    return f"{file} -> {target}", damage


def header(shard: int, name: str, change: Callable[[dict[str, Any], list[str]], object]) -> tuple[str, Damage]:
    """Change the parsed header of a shard, and write it back around the same data."""

    def damage(folder: Path) -> None:
        path = sorted(folder.glob("model-*.safetensors"))[shard]
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        described = json.loads(content[8 : 8 + length])
        change(described, sorted(each for each in described if each != "__metadata__"))
        written = json.dumps(described).encode()
        path.write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :])

    return f"shard {shard}: {name}", damage


def index(name: str, change: Callable[[dict[str, Any]], object]) -> tuple[str, Damage]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        described = json.loads(path.read_text())
        change(described)
        path.write_text(json.dumps(described))

    return f"index: {name}", damage


def moved(entry: dict[str, Any], by: int) -> None:
    entry["data_offsets"] = [each + by for each in entry["data_offsets"]]


HEADER_CHANGES: dict[str, Callable[[dict[str, Any], list[str]], object]] = {
    "overlap or hole": lambda found, names: moved(found[names[0]], 4),
    "a shape too long": lambda found, names: found[names[0]]["shape"].append(2),
    "a shape of nothing": lambda found, names: found[names[0]].update(shape=[]),
    "another dtype": lambda found, names: found[names[0]].update(dtype="BF16"),
    "no offsets": lambda found, names: found[names[0]].pop("data_offsets"),
    "a tensor less": lambda found, names: found.pop(names[0]),
    "another name": lambda found, names: found.update({"model.other": found.pop(names[0])}),
    "negative offsets": lambda found, names: found[names[0]].update(data_offsets=[-4, 0]),
}


def grammar() -> Iterator[tuple[str, Damage]]:
    """Every damage with its name."""
    for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
        for value in (-1, 512, 10**30, [0, 512], "0", 1.5, True):
            yield setting(token, value)
        yield setting(token, 512, "generation_config.json")
    for value in (0, -1e-6, 1e30, "1e-6", [], True, 1e-300):
        yield setting("rms_norm_eps", value)
    for value in (0, -1, 1e300, "x", []):
        yield setting("rope_theta", value)
    linear = {"rope_type": "linear", "rope_theta": 1e4}
    llama3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "attention_factor": 1.0}
    for rope in (
        linear,
        linear | {"factor": 0},
        linear | {"factor": "2"},
        linear | {"factor": -2.0},
        llama3,
        llama3 | {"low_freq_factor": 4.0, "high_freq_factor": 1.0},
        llama3 | {"low_freq_factor": 0, "high_freq_factor": 4.0},
        llama3 | {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": None},
        longrope,
        longrope | {"short_factor": [1.0], "long_factor": [1.0]},
        longrope | {"short_factor": [0.0] * 8, "long_factor": [0.0] * 8},
        longrope | {"short_factor": ["a"] * 8, "long_factor": ["a"] * 8},
        {"rope_type": "yarn"},
        {"rope_type": ["default"]},
        "default",
        [1],
        7,
    ):
        yield setting("rope_parameters", rope)
    for dimension in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim"):
        for number in (0, -2, 10**9, 10**30, "64", 1.5, [64]):
            yield setting(dimension, number)
    for name, value in (
        ("dtype", "int8"),
        ("dtype", 16),
        ("initializer_range", "x"),
        ("layer_types", ["a"]),
        ("auto_map", 5),
        ("per_layer_config", {"0": {"intermediate_size": 8}}),
        ("attn_implementation", "evil"),
        ("return_dict", False),
        ("use_cache", "x"),
        ("id2label", 5),
        ("tie_word_embeddings", "yes"),
        ("quantization_config", {"quant_method": "gptq"}),
        ("model_type", "gpt2"),
        ("model_type", ["llama"]),
    ):
        yield setting(name, value)
    nonsense = (b"", b"[]", b"3", b"null", b'{"a": NaN}', b'{"a": 1e999}', b"{", b"\xff\xfe", b"[" * 300_000)
    for file in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        for content in nonsense:
            yield text(file, content)
    for content in (b"", b"[]", b"3", b"{", b"\xff\xfe", b"[" * 300_000, b'{"model": {"type": "BPE"}}'):
        yield text("tokenizer.json", content)
    for content in (b"[]", b"{", b"\xff\xfe"):
        yield text("tokenizer_config.json", content)
    for template in (b"{% for each in messages %}{{ each.content }", b"{{ messages[0] ", b"{% if %}{% endif %}"):
        yield text("chat_template.jinja", template)
    yield setting("added_tokens", [{"id": 9999, "content": "<far>", "special": True}], "tokenizer.json")
    for file in ("tokenizer.json", "config.json", "model-00002-of-00005.safetensors"):
        yield removed(file)
    for file in ("LICENSE", "NOTICE.txt", "README.md", "chat_template.jinja", "config.json", "tokenizer.json"):
        yield link(file, "../secret")
        yield link(file, "/etc/passwd")
    for shard in range(5):
        for name, change in HEADER_CHANGES.items():
            yield header(shard, name, change)
    yield index("an empty map", lambda found: found.update(weight_map={}))
    yield index("no map", lambda found: found.pop("weight_map"))
    yield index("a shard less", lambda found: found["weight_map"].popitem())
    yield index("the wrong shard", lambda found: found["weight_map"].update({"model.norm.weight": FIRST}))
    yield index("a tensor of nobody", lambda found: found["weight_map"].update(x=FIRST))
    yield index("a path", lambda found: found["weight_map"].update(x="../secret.safetensors"))


HARMLESS = [
    setting("eos_token_id", [0, 1]),
    setting("pad_token_id", None),
    setting("something_new", {"a": [1, 2]}),
    setting("torch_dtype", "float16"),
    setting("temperature", 0.7, "generation_config.json"),
    setting("eos_token_id", [0, 511], "generation_config.json"),
    text("LICENSE", b"terms"),
    text("README.md", b"---\nlicense: [\n---\n"),
    link("NOTICE", "config.json"),
    text("notes.bin", b"\0"),
    removed("tokenizer_config.json"),
]


@pytest.fixture
def judged(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[[Damage], tuple[int, str]]:
    """How a run on a damaged copy of the model ends, up to where its work would begin: exit code and what was said."""
    monkeypatch.setattr(worker, "process_group", at_the_work)
    config = compose_config(workplace.overrides("any_parent"))

    def judge(damage: Damage) -> tuple[int, str]:
        model = tmp_path / "model"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(workplace.model, model)
        damage(model)
        capfd.readouterr()
        before = sorted(tmp_path.rglob("*"))
        changed = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(model)))
        code = up_to_the_work(lambda: work(changed))
        assert sorted(tmp_path.rglob("*")) == before
        assert not (workplace.folder / "any_parent").exists()
        return code, capfd.readouterr().err

    return judge


def test_every_damage_is_refused_in_one_line(judged: Callable[[Damage], tuple[int, str]]) -> None:
    wrong, cases = [], list(grammar())
    for name, damage in cases:
        code, said = judged(damage)
        is_one_line = said.startswith("error: ") and said.count("\n") == 1 and SECRET not in said
        if code != REFUSED or not is_one_line:
            wrong.append((name, code, said))
    assert len(cases) >= 150
    assert not wrong


def test_what_does_no_harm_is_accepted(judged: Callable[[Damage], tuple[int, str]]) -> None:
    assert [(name, said) for name, damage in HARMLESS for code, said in [judged(damage)] if code != DONE] == []


def judge_on_rank(folders: list[Path], overrides: list[str]) -> list[tuple[str, str]]:
    """What this rank says of each folder before the work, and when it loads it."""
    from transact.distributed.process import process_group
    from transact.engine.engine import open_engine
    from transact.models.folder import geometry_of
    from transact.models.identity import UnusableModel
    from transact.rounds import outline
    from transact.runs.run_folder import RunFolder
    from transact.stages.job import Job
    from transact.stages.parent import judge_weights
    from transact.tracking.tracker import Tracker

    config, said = compose_config(overrides), []
    with process_group("cpu", 5) as group:
        run = RunFolder(folders[0])
        asked = outline(config, geometry_of(Path(config.model.path or "")))
        job = Job(config=config, group=group, folder=run, outline=asked, tracker=Tracker(None, None))
        for folder in folders:
            try:
                judge_weights(job, folder)
                judged = ""
            except ValueError as error:
                judged = str(error)
            try:
                with open_engine(folder, config.engine, group):
                    loaded = ""
            except UnusableModel as error:
                loaded = str(error)
            said.append((judged, loaded))
    return said


def test_every_tensor_is_looked_at_by_some_rank(workplace: Workplace, tmp_path: Path) -> None:
    """NaN and infinity in the first, a middle or the last value of every tensor: all ranks name it, none hangs."""
    shards = sorted(workplace.model.glob("model-*.safetensors"))
    places = [(shard, name) for shard in shards for name in sorted(load_file(shard))]
    folders, expected = [], []
    for number, (shard, name) in enumerate(places):
        folder = Path(shutil.copytree(workplace.model, tmp_path / str(number)))
        tensors = load_file(shard)
        values, value = tensors[name].view(-1), ("nan", "inf", "-inf")[number % 3]
        values[(0, len(values) // 2, -1)[number // 3 % 3]] = float(value)
        save_file(tensors, folder / shard.name, metadata={"format": "pt"})
        folders.append(folder)
        expected.append(
            f"{name} in {str(folder / shard.name)!r} holds {'values that are' if value == 'nan' else 'inf'}"
        )
    for told in run_on_ranks(2, judge_on_rank, folders, workplace.overrides("ranks")):
        for (judged, loaded), named in zip(told, expected, strict=True):
            assert named in judged and named in loaded
    assert len(folders) == 20
