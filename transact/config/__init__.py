"""The configuration: a dataclass for every group of settings. Hydra composes YAML into them.

The rest of the code sees these dataclasses alone. They are the only source of defaults, and the files of conf/ hold
what differs. Checks that need nothing but the values are in `__post_init__`; checks that need the model folder, the
text or the number of ranks are in `transact.stages.preflight`. Every message names the field, the value given and what
is allowed.
"""
