"""TwinSqueeze: compresses sentence embeddings, trained with NEFTune-style noise and tracked in MLflow.

Example:
    import twinsqueeze as ts

    data = ts.load_dataset("stsb")
    result = ts.train(ts.Recipe(alpha=0.75), data, progress=True)
    result.scores["test"].spearman
    result.compressor.encode(["A man plays the guitar."])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinsqueeze.api import SplitScores, TrainResult, compare_recipes, track, train
    from twinsqueeze.compressor import Compressor
    from twinsqueeze.data.dataset import Dataset
    from twinsqueeze.data.loading import load_dataset
    from twinsqueeze.errors import InputError
    from twinsqueeze.recipe import Recipe

__version__ = "0.1.0"
__all__ = [
    "Compressor",
    "Dataset",
    "InputError",
    "Recipe",
    "SplitScores",
    "TrainResult",
    "compare_recipes",
    "load_dataset",
    "track",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `--help` does not wait for PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    """Returns the public names."""
    return [*__all__, "__version__"]
