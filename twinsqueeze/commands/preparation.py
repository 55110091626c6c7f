"""Prepares what a command trains or evaluates on."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from twinsqueeze.data.dataset import Dataset
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.experiment_data import ExperimentData, prepare_data
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking.run import check_tracking_server, env_run_id
from twinsqueeze.tracking.store import find_current_experiment
from twinsqueeze.training.base import Base
from twinsqueeze.utils import console
from twinsqueeze.utils.compute import resolve_device


def load_experiment_data(
    recipe: Recipe, pairs: Dataset, validate_dim: Callable[[int], None], run_name: str, base: Base | None = None
) -> ExperimentData:
    """Checks that the tracking server answers, and encodes the texts of a dataset.

    Before they are encoded, it prints what data, encoder, base and device the run has, and checks that the base fits.
    """
    device = resolve_device(recipe.device).type
    encoder = None if pairs.has_vectors else resolve_encoder(recipe.encoder, device)
    check_tracking_server()
    if not env_run_id():
        find_current_experiment()  # raises for settings that disagree

    @cache
    def print_setup(dim: int) -> None:
        if base:
            base.check_input(encoder, dim)
        validate_dim(dim)
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in pairs.splits.items())
        console.info(f"Data:    {pairs.name}, {sizes} {pairs.task.examples}")
        console.info(f"Encoder: {encoder.name}, {dim} floats" if encoder else f"Vectors: {dim} floats")
        if base:
            console.info(f"Base:    {base.description}")
        console.info(f"Run:     {run_name} on {device}")
        if pairs.notice:
            console.warn(pairs.notice)

    data = prepare_data(pairs, encoder, device, validate_dim=print_setup, reporter=console.TERMINAL)
    return replace(data, base=base)
