"""The text, and how it is cut into sequences: conf/data/."""

from __future__ import annotations

from dataclasses import dataclass, field

from transact.checks import require, require_at_least, require_choice, require_positive

TEXT_SOURCES = ("files", "hub", "python_stdlib")
STDLIB_PARTS = ("train", "heldout")


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """Where text comes from: local txt, jsonl and parquet files, a hub dataset, or this Python's library."""

    source: str
    """"files" (txt, md, jsonl, parquet), "hub" (a dataset of the Hugging Face hub) or "python_stdlib" (the library of
    the Python that runs)."""
    files: list[str] = field(default_factory=list)
    """With source "files": paths or glob patterns."""
    hub_id: str | None = None
    """With source "hub": the dataset's id. null: with the other sources."""
    hub_config: str | None = None
    """The configuration of that dataset. null: its only one."""
    hub_revision: str | None = None
    """A branch, tag or commit of that dataset. null: the newest."""
    split: str = "train"
    """The split of that dataset."""
    text_field: str = "text"
    """The field that holds the text, of jsonl and parquet files and of hub datasets."""
    part: str = "train"
    """With source "python_stdlib": "train" or "heldout"; no file is in both."""

    def __post_init__(self) -> None:
        require_choice("data.*.source", self.source, TEXT_SOURCES)
        require_choice("data.*.part", self.part, STDLIB_PARTS)
        require("data.*.files", self.files, self.source != "files" or bool(self.files), "name at least one file")
        require("data.*.hub_id", self.hub_id, self.source != "hub" or bool(self.hub_id), "name a hub dataset")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The text, and how it is cut into sequences."""

    train: TextConfig
    """Text for recovery, validation and calibration."""
    evaluation: TextConfig
    """Held-out text, on which perplexity is reported."""
    sequence_length: int
    """Tokens of a sequence, 2 or more, in training, calibration and evaluation alike."""
    evaluation_sequences: int
    """Sequences of the held-out text, at most as many as it has."""
    token_store: str
    """A folder for tokenised text, shared by all runs: the same text is tokenised once."""

    def __post_init__(self) -> None:
        require_at_least("data", self, 2, "sequence_length")
        require_positive("data", self, "evaluation_sequences")
