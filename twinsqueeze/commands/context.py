"""The data that a command works on."""

from collections.abc import Callable, Sequence

from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.experiment import ExperimentData, prepare_data
from twinsqueeze.recipe import Recipe
from twinsqueeze.tracking.run import check_tracking_server
from twinsqueeze.utils import console
from twinsqueeze.utils.compute import resolve_device


def load_experiment_data(
    recipe: Recipe, splits: Sequence[str], score_max: float | None, validate_dim: Callable[[int], None]
) -> ExperimentData:
    """Loads the data of a recipe, checks that the tracking server answers, and encodes the sentences."""
    device = resolve_device(recipe.device).type
    pairs = load_pairs(recipe.dataset, splits=splits, score_max=score_max)
    if pairs.notice:
        console.warn(pairs.notice)
    encoder = resolve_encoder(recipe.encoder, device)
    check_tracking_server()
    return prepare_data(pairs, encoder, score_max=score_max, validate_dim=validate_dim, reporter=console.TERMINAL)
