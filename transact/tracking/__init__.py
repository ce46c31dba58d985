"""What a run tells the world: `metrics.jsonl` (the truth), W&B (its mirror), the console."""
