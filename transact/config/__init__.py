"""The typed configuration of a run. Hydra composes YAML into it; the rest of the code sees only these.

A file per group of settings, as in conf/. Checks that need nothing but the values are in `__post_init__`; checks that
need the model folder, the text or the number of ranks are in `transact.stages.preflight`. Every message names the
field, the value given and what is allowed.
"""

from transact.config.data import DataConfig, TextConfig
from transact.config.engine import DEVICES, CheckpointEveryConfig, EngineConfig
from transact.config.estimate import EstimateConfig
from transact.config.eval import EfficiencyConfig, EvalConfig
from transact.config.export import ExportConfig
from transact.config.launch import LaunchConfig
from transact.config.model import DTYPES, ArchitectureConfig, ModelConfig
from transact.config.prune import ROTARY_CHOICES, MethodConfig, MultipleConfig, PruneConfig
from transact.config.recover import LOGIT_CHUNK_ELEMENTS, RESERVED_SPREAD, VARIANTS, RecoverConfig
from transact.config.run import FREE_SECTIONS, FREE_SETTINGS, RunConfig
from transact.config.track import TrackConfig

__all__ = [
    "DEVICES",
    "DTYPES",
    "FREE_SECTIONS",
    "FREE_SETTINGS",
    "LOGIT_CHUNK_ELEMENTS",
    "RESERVED_SPREAD",
    "ROTARY_CHOICES",
    "VARIANTS",
    "ArchitectureConfig",
    "CheckpointEveryConfig",
    "DataConfig",
    "EfficiencyConfig",
    "EngineConfig",
    "EstimateConfig",
    "EvalConfig",
    "ExportConfig",
    "LaunchConfig",
    "MethodConfig",
    "ModelConfig",
    "MultipleConfig",
    "PruneConfig",
    "RecoverConfig",
    "RunConfig",
    "TextConfig",
    "TrackConfig",
]
