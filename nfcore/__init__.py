"""Normalisation-free language models, their attention entropy, and the training that compares them.

Importing the package loads neither torch nor transformers. ``import nfcore.model`` does, and registers our models with
transformers' Auto classes.
"""

import importlib


__version__ = "0.1.0"

_EXPORTS = {
    "Experiment": "settings",
    "ModelSettings": "settings",
    "DataSettings": "settings",
    "TrainingSettings": "settings",
    "SettingsError": "settings",
    "SHAPES": "settings",
    "NormFreeConfig": "model",
    "NormFreeForCausalLM": "model",
    "from_gpt2": "convert",
    "from_gpt_neox": "convert",
    "to_gpt2": "convert",
    "to_gpt_neox": "convert",
    "attention_entropy": "entropy",
    "attention_rows": "entropy",
    "attention_statistics": "meter",
    "entropy_ceiling": "shares",
    "head_entropy": "meter",
    "quartile_shares": "shares",
    "prepare": "tokens",
    "train": "training",
    "load_runs": "runs",
    "Runs": "runs",
}

__all__ = [*_EXPORTS]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'nfcore' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nfcore.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
