"""Pure mathematics of pruning: what to cut, decided by functions on tensors and numbers.

Nothing here knows of processes, files or configuration. The way through: `statistics` ->
`criteria` -> `selection` (with dimensions from `schedule` and `search_space`) -> `slicing`.
"""
