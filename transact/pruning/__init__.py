"""Pure mathematics of pruning: what to cut, decided by functions on tensors and numbers.

Nothing here knows of processes, files or configuration. The way through: `statistics` ->
`criteria` -> `planning` (with dimensions from `schedule` and `budget`) -> `slicing`.
"""
