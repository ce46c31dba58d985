"""A tokenizer as LLaMA 2 and Mistral have it: tokenizer.model of sentencepiece, and the same as tokenizer.json."""

from __future__ import annotations

from pathlib import Path


def train_sentencepiece(folder: Path, text: Path) -> None:
    """Train one on a text file and put it into a model folder."""
    import sentencepiece
    from transformers import LlamaTokenizer

    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
