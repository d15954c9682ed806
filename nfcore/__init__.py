"""Normalisation-free language models, their attention entropy, and the training that compares them.

Importing the package loads neither torch nor transformers. ``import nfcore.model`` does, and registers our models with
transformers' Auto classes.
"""

import importlib


__version__ = "0.1.0"

_EXPORTS = {
    "settings": ["Experiment", "ModelSettings", "DataSettings", "TrainingSettings", "SettingsError", "SHAPES"],
    "model": ["NormFreeConfig", "NormFreeForCausalLM"],
    "convert": ["from_gpt2", "from_gpt_neox", "to_gpt2", "to_gpt_neox"],
    "entropy": ["attention_entropy", "attention_rows"],
    "meter": ["attention_statistics", "head_entropy"],
    "shares": ["entropy_ceiling", "quartile_shares"],
    "tokens": ["prepare"],
    "training": ["train"],
    "runs": ["load_runs", "Runs"],
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [*_MODULES]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'nfcore' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nfcore.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
