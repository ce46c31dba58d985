# What `transact/__init__.py` imports when it is asked for, as type checkers see it.
from transact.launch.from_python import Result as Result
from transact.launch.from_python import prune as prune
from transact.stages.in_memory import prune_model as prune_model

__version__: str
