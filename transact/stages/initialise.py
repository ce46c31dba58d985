"""Initialise: a random model with a tokenizer trained on the text, for `mode=pretrain`."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from transact.config.run import RunConfig
from transact.data.text import documents
from transact.engine.model_folder import stored_config
from transact.files import fresh_temporary_folder, publish, write_json

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_DOCUMENTS = 20_000


def train_tokenizer(config: RunConfig, vocab_size: int) -> Any:
    """Train a byte-level BPE tokenizer of exactly `vocab_size` entries, one of them the end of a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    # The split of GPT-2's successors: digits one by one, so that numbers do not fill the vocabulary.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = config.data.training_texts().items()
    from_each = -(-TOKENIZER_DOCUMENTS // len(texts))
    backend.train_from_iterator(
        chain.from_iterable(islice(documents(text, setting), from_each) for setting, text in texts), trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        model_max_length=config.model.architecture.max_position_embeddings if config.model.architecture else None,
    )


def initialise(config: RunConfig, output: Path) -> None:
    """Write a random model of `model.architecture` and its tokenizer as a model folder (rank 0 alone)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    architecture = config.model.architecture
    assert architecture is not None
    tokenizer = train_tokenizer(config, architecture.vocab_size)
    temporary = fresh_temporary_folder(output)
    tokenizer.save_pretrained(temporary)
    settings = architecture.to_model_config() | {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(temporary)
    write_json(temporary / "config.json", stored_config(settings, "float32"))
    publish(temporary, output)
