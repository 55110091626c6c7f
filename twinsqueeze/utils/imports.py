"""Imports what takes seconds only when it is needed."""

import gc
import sys
from importlib import import_module
from typing import Any


def import_lazily(module: str) -> Any:
    """Import a module of the package whose imports, PyTorch or MLflow, take seconds.

    Without garbage collection, which would scan the objects of these packages again and again, for a fifth of the time.
    """
    name = f"twinsqueeze.{module}"
    if name not in sys.modules:
        gc.disable()
        try:
            import_module(name)
        finally:
            gc.freeze()
            gc.enable()
    return sys.modules[name]
