"""Normalisation-free language models, their attention entropy, and the training that compares them.

Importing the package loads neither torch nor transformers. Whenever transformers' Auto classes are loaded, before or
afterwards, they know our models.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from typing import Any


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
    "prepare": "data",
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


_AUTO = "transformers.models.auto.configuration_auto"


class _WithAutoClasses(importlib.abc.MetaPathFinder):
    """Loads :mod:`nfcore.model`, which registers our classes, when the module of transformers' AutoConfig is loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def load_both(module: Any) -> None:
                load(module)
                importlib.import_module("nfcore.model")

            spec.loader.exec_module = load_both  # type: ignore[method-assign]
        return spec


if _AUTO in sys.modules:
    importlib.import_module("nfcore.model")
else:
    sys.meta_path.insert(0, _WithAutoClasses())
