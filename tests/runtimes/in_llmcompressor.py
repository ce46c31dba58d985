"""Generate from quantised folders with transformers in llm-compressor's environment, as worker.py says."""

from __future__ import annotations

from in_transformers import answer
from worker import serve

if __name__ == "__main__":
    serve(answer)
