"""A random LLaMA small enough for seconds, and real text to go with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 512
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
TRAIN_MODULES = ("argparse", "ast", "calendar", "configparser", "csv", "decimal", "difflib", "doctest", "_pydecimal")
HELD_OUT_MODULES = ("textwrap", "shlex")


def write_text_files(folder: Path) -> tuple[Path, Path]:
    """A training and a held-out text file of standard library sources."""
    import sysconfig

    library = Path(sysconfig.get_path("stdlib"))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, modules in (("train.txt", TRAIN_MODULES), ("heldout.txt", HELD_OUT_MODULES)):
        path = folder / name
        path.write_text("\n".join((library / f"{module}.py").read_text() for module in modules))
        paths.append(path)
    return paths[0], paths[1]


def train_tokenizer(text: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train([str(text)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def write_model(folder: Path, *, shards: bool = False, **changes: Any) -> Path:
    """Save a random model in the layout of the hub; weights large enough that its logits are not all alike."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**(TINY | {"initializer_range": 0.1} | changes))
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="100KB" if shards else "5GB")
    return folder
