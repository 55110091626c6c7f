"""Selection of the PyTorch device."""

import torch

from twinsqueeze.errors import InputError


def resolve_device(name: str) -> torch.device:
    """Returns the device named `auto`, `cpu` or `cuda`; raises an `InputError` if PyTorch finds no CUDA device."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device is cuda, but PyTorch finds no CUDA device: use cpu or auto")
    return torch.device("cuda" if name != "cpu" and available else "cpu")
