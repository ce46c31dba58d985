"""`mode=estimate`: what a run would do and need, from dimensions alone; no weights are loaded."""
