"""Each mistake ends with one line that names the field and the value, exit code 2, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from tests.support.commands import Workplace
from tests.support.tiny import train_tokenizer
from transact.run import main


@pytest.fixture
def refused(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Run with overrides that must be refused; returns the one line."""

    def run(*overrides: str) -> str:
        monkeypatch.chdir(tmp_path)
        before = sorted(workplace.folder.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["transact", *workplace.overrides("refused"), *overrides])
        assert main() == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1, output.err
        assert output.err.startswith("error: ")
        assert sorted(workplace.folder.rglob("*")) == before
        return output.err

    return run


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("prune.remove_fraction=0", "prune.remove_fraction=0 "),
        ("prune.remove_fraction=1", "prune.remove_fraction=1 "),
        ("prune.remove_fraction=-0.5", "prune.remove_fraction=-0.5"),
        ("prune.remove_fraction=0.9", "0.9"),
        ("prune.remove_fraction=null", "prune.remove_fraction=null"),
        ("prune.rounds=0", "prune.rounds=0"),
        ("prune.rounds=50", "50"),
        ("prune.method.pair_score=magic", "norm_product, token_product, logit_variance"),
        ("prune.method.channels=magic", "obs, norm, taylor, magnitude, random"),
        ("prune.method.refit=magic", "none, least_squares, sequential"),
        ("prune.method.ridge=0", "prune.method.ridge=0 "),
        ("prune.method.rige=1", "prune.method.rige: no such setting"),
        ("prune.method.attention=heads", "prune.method.values='svd'"),
        ("prune/method=magic", "paper_heads"),
        ("prune.split=magic", "equal, auto"),
        ("prune.round_shares=[1,2,3]", "prune.rounds=2"),
        ("prune.intermediate_size=8", "prune.remove_fraction=0.4"),
        ("prune.head_dim=6", "prune.head_dim=6"),
        ("recover.objective=magic", "cross_entropy, distillation, mixed"),
        ("recover.temperature=0", "recover.temperature=0 "),
        ("recover.distillation_weight=1", "recover.distillation_weight=1 "),
        ("recover.decay=magic", "cosine, linear"),
        ("prune.schedule=sudden", "linear, geometric, cubic"),
        ("prune.rnds=3", "prune.rnds: no such setting"),
        ("+prune.rnds=3", "prune.rnds: no such setting"),
        ("++prune.rnds=3", "prune.rnds: no such setting"),
        ("+nothing=3", "nothing: no such setting"),
        ("+experiment=nope", "llama7b_50pct"),
        ("engine=nope", "default, gpu"),
        ("engine.zero_stage=4", "engine.zero_stage=4"),
        ("engine.micro_batch_sequences=3", "recover.batch_sequences=8"),
        ("engine.micro_batch_sequences=true", "from 1 to 65,536, or auto"),
        ("engine.activation_checkpointing=1", "true or false, or auto"),
        ("engine.attention=magic", "sdpa, eager, flash_attention_2, flash_attention_3"),
        ("engine.attention=flash_attention_2", "engine.dtype=bfloat16"),
        ("engine.kernels=magic", "liger, or null"),
        ("data.sequence_length=256", "data.sequence_length=256"),
        ("recover.tokens=many", "recover.tokens"),
        ("recover.token_shares=[1,2,3]", "prune.rounds=2"),
        ("recover.learning_rates=[1,-1]", "recover.learning_rates"),
        ("model.path=/nowhere/at/all", "/nowhere/at/all"),
        ("data.train.files=[/nowhere.txt]", "data.train.files: '/nowhere.txt'"),
        ("+eval.tasks.piqa=-1", "eval.tasks.piqa=-1"),
        ("eval.task_limit=0", "eval.task_limit=0"),
        ("eval.task_folders=[/nowhere]", "eval.task_folders: '/nowhere'"),
        ("+eval.texts.more={source: files, files: [/nowhere.txt]}", "eval.texts.more.files: '/nowhere.txt'"),
        ("eval.efficiency.new_tokens=[1]", "eval.efficiency.new_tokens=[1]"),
        ("track.mode=sometimes", "auto, online, offline, disabled"),
        ("launch.processes=2", "launch.processes=2"),
        ("name=a/b", "name='a/b'"),
        ("export.gguf=q5_1", "none, f32, f16, q8_0, q4_0, q4_k_m, q5_k_m, q6_k"),
        ("export.executorch=xnnpack", "needs the package executorch: pip install 'transact[executorch]'"),
        ("export.executorch=coreml", "none, xnnpack"),
        ("export.gguff=f16", "export.gguff: no such setting"),
        ("prune.rotary_pairs=magic", "free, progression"),
        ("prune.target=magic", "any, transformers, vllm, llama_cpp, mlx, gptq"),
    ],
)
def test_setting(override: str, named: str, refused: Callable[..., str]) -> None:
    assert named in refused(override)


def test_heads_are_chosen_by_their_norms_alone(refused: Callable[..., str]) -> None:
    """A baseline by another score would be the same one."""
    assert "prune.method.values='random'" in refused("prune/method=paper_heads", "prune.method.values=random")


def test_ranks_that_torchrun_started_start_none_themselves(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert "call it without torchrun" in refused("launch=local", "launch.processes=2")


@pytest.mark.parametrize("setting", ["model.architecture.rope_theta=5e5", "eval.texts.notes={source: files}"])
def test_a_setting_that_only_a_plus_adds(setting: str, refused: Callable[..., str]) -> None:
    assert f"write it with a plus, +{setting.partition('=')[0]}=..." in refused(setting)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refused: Callable[..., str]) -> None:
    assert "torch sees no GPU" in refused("engine.device=cuda")


def test_a_sweep_that_is_refused_leaves_nothing(refused: Callable[..., str], tmp_path: Path) -> None:
    """Hydra would write a dump of everything, secrets in launch.setup too."""
    assert "track.mode='whatever'" in refused("-m", "prune.remove_fraction=0.3", "track.mode=whatever")
    assert not list(tmp_path.rglob("multirun.yaml"))


@pytest.mark.parametrize("store", ["run", "run/tokens", "run/a/../b", "other/../run/b", "link/tokens"])
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_a_token_store_in_the_folder_of_a_run(
    store: str, sweep: tuple[str, ...], refused: Callable[..., str], tmp_path: Path
) -> None:
    """It is written first, and the run would then find a folder that is not empty and not its own."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    told = refused(f"output_dir={tmp_path}/run", f"data.token_store={tmp_path}/{store}", *sweep)
    assert f"data.token_store='{tmp_path}/{store}' is not allowed: it lies in '{tmp_path}/run'" in told


def test_all_points_of_a_sweep_are_looked_at_before_the_first_starts(refused: Callable[..., str]) -> None:
    told = refused("hydra.mode=MULTIRUN", "prune.remove_fraction=0.3,0.9")  # what -m stands for
    assert told.startswith("error: prune.remove_fraction=0.9: prune.remove_fraction=0.9 cannot be reached")


@pytest.mark.parametrize("setting", ["+eval.texts.notes={sources: files}", "+model.architecture.foo=3"])
def test_what_a_plus_adds_is_no_way_around_the_check(setting: str, refused: Callable[..., str]) -> None:
    assert "no such setting; known here: " in refused(setting)


def test_progression_needs_one_set_of_pairs(refused: Callable[..., str]) -> None:
    heads = ["prune/method=paper_heads", "prune.rotary_pairs=progression"]
    assert "prune.rotary_pairs='progression'" in refused(*heads)


def test_more_ranks_than_sequences(refused: Callable[..., str]) -> None:
    message = refused("launch=local", "launch.processes=16")
    assert "16 ranks" in message


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n", "white space"),
        ("binary.txt", b"\x00\x01\x02" * 100, "binary"),
        ("latin.txt", b"caf\xe9 " * 100, "binary"),
        ("table.xls", b"a,b\n", ".parquet"),
        ("table.csv", b"a,b\n", "text_field='text'"),
        ("broken.jsonl", b'{"text": \n', "one JSON object a line"),
        ("other.jsonl", b'{"body": "words"}\n', "text_field='text'"),
        ("cut.parquet", b"PAR1 and no end", "parquet"),
    ],
)
def test_text_file(name: str, content: bytes, named: str, refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(f"data.evaluation.files=[{path}]")
    assert "data.evaluation" in message
    assert named in message


@pytest.mark.parametrize(
    ("name", "put"),
    [
        ("link.txt", lambda source, target: target.symlink_to(source)),
        ("hard_link.md", os.link),
        ("copy.md", shutil.copyfile),
    ],
)
def test_text_that_is_trained_on_is_not_held_out(
    name: str, put: Callable[[Path, Path], object], refused: Callable[..., str], workplace: Workplace, tmp_path: Path
) -> None:
    assert "is trained on too (data.train.files)" in refused(f"data.evaluation.files=[{workplace.train}]")
    other = tmp_path / name
    put(workplace.train, other)
    for files in (f"[{other}]", f"[{workplace.heldout},{other}]", f"['{tmp_path}/*']"):
        said = refused(f"data.evaluation.files={files}")
        assert f"{str(other)!r} is trained on too as {str(workplace.train)!r} (data.train.files)" in said


def test_a_text_by_name_is_held_out_too(refused: Callable[..., str]) -> None:
    assert "nothing of it is held out" in refused(
        *("data.train.source=python_stdlib", "data.train.files=[]"),
        *("data.evaluation.source=python_stdlib", "data.evaluation.files=[]"),
    )


def test_files_that_no_source_reads(refused: Callable[..., str]) -> None:
    assert 'source "python_stdlib" reads no files: data=local' in refused("data.train.source=python_stdlib")


def test_an_architecture_that_is_no_llama(refused: Callable[..., str]) -> None:
    """Before a tokenizer is made for it."""
    asked = ["mode=pretrain", "model=demo_random", "model.path=null", "recover.objective=cross_entropy"]
    said = refused(*asked, "model.architecture.num_attention_heads=5", "model.architecture.num_key_value_heads=5")
    assert "error: model.architecture: " in said and "num_attention_heads" in said


def test_tokens_of_another_tokenizer(refused: Callable[..., str], workplace: Workplace, tmp_path: Path) -> None:
    train_tokenizer(workplace.heldout).save_pretrained(tmp_path / "other")
    numpy.save(tmp_path / "x.npy", numpy.arange(500))
    of_tokens = ["data.train.source=tokens", f"data.train.files=[{tmp_path / 'x.npy'}]"]
    assert "data.train.tokenizer=null is not allowed" in refused(*of_tokens)
    said = refused(*of_tokens, f"data.train.tokenizer={tmp_path / 'other'}")
    assert f"data.train.tokenizer={str(tmp_path / 'other')!r} is not the model's own tokenizer" in said
    numpy.save(tmp_path / "x.npy", numpy.arange(300, 500))
    said = refused(*of_tokens, f"data.train.tokenizer={workplace.model}")
    assert f"data.train.files: nothing in {str(tmp_path / 'x.npy')!r} tells where documents end" in said


def test_a_folder_is_no_file(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "it is a folder; add /*.txt" in refused(f"data.train.files=[{tmp_path}]")


@pytest.fixture
def model(workplace: Workplace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workplace.model, tmp_path / "model"))


def change_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "'gpt2'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
    ],
)
def test_model_config(changes: dict[str, object], named: str, refused: Callable[..., str], model: Path) -> None:
    change_config(model, **changes)
    message = refused(f"model.path={model}")
    assert str(model) in message
    assert named in message


def test_a_window_shorter_than_the_sequences(refused: Callable[..., str], model: Path) -> None:
    change_config(model, model_type="mistral", sliding_window=32)
    assert "the model attends to at most 32 tokens" in refused(f"model.path={model}")


def test_missing_shard(refused: Callable[..., str], model: Path) -> None:
    shard = sorted(model.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"{shard.name!r} is missing" in refused(f"model.path={model}")


def test_truncated_shard(refused: Callable[..., str], model: Path) -> None:
    shard = sorted(model.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    message = refused(f"model.path={model}")
    assert shard.name in message
    assert "truncated" in message


def test_pickles_are_refused_with_the_command_to_convert(refused: Callable[..., str], model: Path) -> None:
    for path in model.glob("model*"):
        path.unlink()
    torch.save({}, model / "pytorch_model.bin")
    message = refused(f"model.path={model}")
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


def test_folder_without_tokenizer(refused: Callable[..., str], model: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert "tokenizer" in refused(f"model.path={model}")


def test_declared_dimensions_that_differ(refused: Callable[..., str]) -> None:
    values = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 160,
        "vocab_size": 512,
        "max_position_embeddings": 128,
        "tie_word_embeddings": "true",
    }
    architecture = ",".join(f"{name}:{value}" for name, value in values.items())
    assert "num_layers=3" in refused(f"model.architecture={{{architecture}}}")
