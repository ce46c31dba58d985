"""Which lengths are measured together."""

from __future__ import annotations

from typing import Any

# Settings of EfficiencyConfig.
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {},
    # The grid of TransAct's latency figure (arXiv 2407.05690), from 64+64 tokens to 256+768.
    "paper": {"prompt_tokens": [64, 128, 256], "new_tokens": [64, 128, 256, 512, 768]},
}
