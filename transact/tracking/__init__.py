"""Records and shows what a run does: `metrics.jsonl` (the truth), W&B (its mirror), the console."""
