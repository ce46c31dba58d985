"""llama.cpp's own converter on exported folders: right, or stopped; never silently wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.commands import environment
from tests.support.exported import random_selection, slice_folder
from tests.support.llama_cpp_use import ask
from tests.support.optional import stock_converter
from tests.support.sentencepiece_tokenizer import train_sentencepiece
from tests.support.tiny import write_text_files
from tests.support.tiny_families import write_family_model
from transact.export.folder import GUARD_NAME, write_export

NEW_TOKENS = 64


def exported(folder: Path, **options: Any) -> Path:
    """A random LLaMA with half of its heads' dims, and a tokenizer that the converter reads."""
    parent = write_family_model(folder / "parent", "llama", max_position_embeddings=512)
    train_sentencepiece(parent, write_text_files(folder / "text")[0])
    sliced = slice_folder(
        parent, folder / "sliced", random_selection(parent, head_dim=8, intermediate_size=96, **options)
    )
    (folder / "export").mkdir()
    write_export(sliced, folder / "export", "float32", "# a model\n")
    return folder / "export"


def convert(folder: Path, file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(stock_converter()), str(folder), "--outfile", str(file), "--outtype", "f32"]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def largest_difference(folder: Path, file: Path, where: Path) -> tuple[float, bool]:
    """Of logits, in shares of the largest, between transformers and llama.cpp; and whether greedy tokens agree."""
    sequences = torch.randint(0, 500, (2, 64), generator=torch.Generator().manual_seed(3))
    answer = ask(file, where, sequences=sequences.tolist(), new_tokens=NEW_TOKENS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        logits = model(sequences).logits
        greedy = model.generate(torch.tensor([[1, 2, 3]]), **settings)[0].tolist()
    return float((answer["logits"] - logits).abs().max() / logits.abs().max()), answer["greedy"] == greedy


def test_pairs_in_progression_are_converted_right(tmp_path: Path) -> None:
    folder = exported(tmp_path, pairs_in_progression=True)
    done = convert(folder, tmp_path / "model.gguf")
    assert done.returncode == 0, done.stderr
    difference, is_same_text = largest_difference(folder, tmp_path / "model.gguf", tmp_path)
    assert difference < 0.01
    assert is_same_text


def test_free_pairs_stop_it(tmp_path: Path) -> None:
    """It names the tensor that guards them, and leaves no file."""
    done = convert(exported(tmp_path), tmp_path / "model.gguf")
    assert done.returncode != 0
    assert GUARD_NAME in done.stderr
    assert not (tmp_path / "model.gguf").exists()


def test_control_without_the_guard_it_is_silently_wrong(tmp_path: Path) -> None:
    """Why the guard is there. Once this fails, the converter knows the factors and the guard can go."""
    folder = exported(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors[GUARD_NAME]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = convert(folder, tmp_path / "model.gguf")
    assert done.returncode == 0, done.stderr
    difference, is_same_text = largest_difference(folder, tmp_path / "model.gguf", tmp_path)
    assert difference > 0.05
    assert not is_same_text
