"""The method: latent-matched fine-tuning of one-step image generators, in PyTorch.

This package has the noise assignment (E-step), the fine-tuning loss (M-step), pair sets, assignment records, diagnostics and
the report. Nothing here imports ray, reads the command line or prints; `rayjobs` runs it at scale.

The names in `__all__` are the public library: their arguments and results do not change between minor versions. Other modules
may change. Each name is imported at its first use, so that `import ortho_core` is fast. `recipes/` has an example of each.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: The module of each public name.
_MODULES = {
    "AssignConfig": "estep.config",
    "AssignedNoise": "estep.assign",
    "BaseGenerator": "generators.base",
    "Condition": "generators.protocol",
    "Estimate": "evaluation.metrics",
    "LoadedPairs": "pairs.read",
    "Lora": "generators.lora_config",
    "LossTerms": "mstep.update",
    "MStep": "mstep.update",
    "MStepConfig": "mstep.config",
    "ModelFolder": "generators.model_folder",
    "OneStepGenerator": "generators.protocol",
    "Outcome": "mstep.update",
    "PairFields": "pairs.rows",
    "Reward": "rewards.base",
    "SearchConfig": "estep.config",
    "SftBatch": "mstep.loss",
    "UserError": "errors",
    "add_lora": "generators.lora",
    "assign_noise": "estep.assign",
    "generate_images": "generators.sampling",
    "kid_between": "evaluation.compare",
    "labelled_rows": "pictures",
    "load_generator": "generators.load",
    "matched_batches": "mstep.batches",
    "raise_reward": "rewards.search",
    "read_images": "pairs.read",
    "read_pairs": "pairs.read",
}

__all__ = [
    "AssignConfig",
    "AssignedNoise",
    "BaseGenerator",
    "Condition",
    "Estimate",
    "LoadedPairs",
    "Lora",
    "LossTerms",
    "MStep",
    "MStepConfig",
    "ModelFolder",
    "OneStepGenerator",
    "Outcome",
    "PairFields",
    "Reward",
    "SearchConfig",
    "SftBatch",
    "UserError",
    "__version__",
    "add_lora",
    "assign_noise",
    "generate_images",
    "kid_between",
    "labelled_rows",
    "load_generator",
    "matched_batches",
    "raise_reward",
    "read_images",
    "read_pairs",
]

if TYPE_CHECKING:
    from ortho_core.errors import UserError
    from ortho_core.estep.assign import AssignedNoise, assign_noise
    from ortho_core.estep.config import AssignConfig, SearchConfig
    from ortho_core.evaluation.compare import kid_between
    from ortho_core.evaluation.metrics import Estimate
    from ortho_core.generators.base import BaseGenerator
    from ortho_core.generators.load import load_generator
    from ortho_core.generators.lora import add_lora
    from ortho_core.generators.lora_config import Lora
    from ortho_core.generators.model_folder import ModelFolder
    from ortho_core.generators.protocol import Condition, OneStepGenerator
    from ortho_core.generators.sampling import generate_images
    from ortho_core.mstep.batches import matched_batches
    from ortho_core.mstep.config import MStepConfig
    from ortho_core.mstep.loss import SftBatch
    from ortho_core.mstep.update import LossTerms, MStep, Outcome
    from ortho_core.pairs.read import LoadedPairs, read_images, read_pairs
    from ortho_core.pairs.rows import PairFields
    from ortho_core.pictures import labelled_rows
    from ortho_core.rewards.base import Reward
    from ortho_core.rewards.search import raise_reward


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
