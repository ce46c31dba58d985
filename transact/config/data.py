"""The text, and how it is cut into sequences: conf/data/."""

from __future__ import annotations

from dataclasses import dataclass

from transact.checks import require
from transact.config.setting import LONGEST_PATH, setting

TEXT_SOURCES = ("files", "hub", "python_stdlib")
DOCUMENT_MARKS = ("auto", "both", "begin", "end", "none")
STDLIB_PARTS = ("train", "heldout")


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """Where text comes from: local txt, jsonl and parquet files, a hub dataset, or this Python's library."""

    source: str = setting(choices=TEXT_SOURCES)
    """"files" (txt, md, jsonl, parquet), "hub" (a dataset of the Hugging Face hub) or "python_stdlib" (the library of
    the Python that runs)."""
    files: list[str] = setting(factory=list, longest=LONGEST_PATH)
    """With source "files": paths or glob patterns."""
    hub_id: str | None = setting(None, pattern=r"[\w.-]+(/[\w.-]+)?", words="owner/name")
    """With source "hub": the dataset's id. null: with the other sources."""
    hub_config: str | None = setting(None)
    """The configuration of that dataset. null: its only one."""
    hub_revision: str | None = setting(None)
    """A branch, tag or commit of that dataset. null: the newest."""
    split: str = setting("train")
    """The split of that dataset."""
    text_field: str = setting("text")
    """The field that holds the text, of jsonl and parquet files and of hub datasets."""
    part: str = setting("train", choices=STDLIB_PARTS)
    """With source "python_stdlib": "train" or "heldout"; no file is in both."""

    def __post_init__(self) -> None:
        require("data.*.files", self.files, self.source != "files" or bool(self.files), "name at least one file")
        require("data.*.hub_id", self.hub_id, self.source != "hub" or bool(self.hub_id), "name a hub dataset")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The text, and how it is cut into sequences."""

    train: TextConfig
    """Text for recovery, validation and calibration."""
    evaluation: TextConfig
    """Held-out text, on which perplexity is reported."""
    sequence_length: int = setting(0, at_least=0, at_most=2**20)
    """Tokens of a sequence, 2 or more, in training, calibration and evaluation alike. 0: as many as the model takes, at
    most 4096."""
    evaluation_sequences: int = setting(256, at_least=1, at_most=10**7)
    """Sequences of the held-out text, at most as many as it has."""
    token_store: str = setting("outputs/token_store", longest=LONGEST_PATH)
    """A folder for tokenised text, shared by all runs: the same text is tokenised once. It may be moved: what counts is
    the content."""
    document_marks: str = setting("auto", choices=DOCUMENT_MARKS)
    """Tokens between documents: "both" (the tokenizer's bos before and its eos after each), "begin" or "end" (one of
    them), "none". "auto": before a document what the tokenizer itself puts before a text, after it its end of text.
    That is eos, or where the chat template names eos (it ends a turn) <|endoftext|> or alike, if there is one."""

    def __post_init__(self) -> None:
        length = self.sequence_length
        require("data.sequence_length", length, length != 1, "it must be at least 2, or 0 for what the model takes")
