"""Configuration: frozen dataclasses ↔ TOML files ↔ dotted overrides.

`load(PretrainConfig, "configs/x.toml", ["optim.lr=3e-4"])` starts from the defaults of the sections, lays the
file over them, then the overrides. An unknown key is an error that names the nearest one, an
impossible value an error that names the rule. The sentence under each field is its documentation:
`python train.py --help` prints it.
"""

from minialpaca.config.adapting import ADAPTERS, ATTACKS, ROLES, AdapterConfig, AdversarialConfig, BaseConfig, TaskConfig
from minialpaca.config.data import ClassesConfig, CorpusConfig, InstructionConfig, TokenizerConfig
from minialpaca.config.files import default_of, describe, field_docs, load, read_toml, to_toml
from minialpaca.config.model import ARCHITECTURE_OF, ModelConfig, ObjectiveConfig
from minialpaca.config.rules import is_device
from minialpaca.config.sampling import Sampling
from minialpaca.config.scripts import FinetuneConfig, PretrainConfig
from minialpaca.config.training import LossConfig, OptimConfig, RunConfig, SampleConfig, TrainConfig

__all__ = [
    "ADAPTERS", "ARCHITECTURE_OF", "ATTACKS", "ROLES", "AdapterConfig", "AdversarialConfig", "BaseConfig", "ClassesConfig", "CorpusConfig",
    "FinetuneConfig", "InstructionConfig", "LossConfig", "ModelConfig", "ObjectiveConfig", "OptimConfig",
    "PretrainConfig", "RunConfig", "SampleConfig", "TaskConfig", "TokenizerConfig", "TrainConfig", "default_of",
    "describe", "field_docs", "is_device", "load", "read_toml", "to_toml",
]
