"""The data that a command works on."""

from collections.abc import Callable, Sequence

from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.experiment import ExperimentData, prepare_data
from twinsqueeze.tracking.run import check_tracking_server
from twinsqueeze.utils import console
from twinsqueeze.utils.device import resolve_device


def load_experiment_data(
    dataset: str,
    encoder: str,
    device: str,
    splits: Sequence[str],
    *,
    score_max: float | None = None,
    validate_dim: Callable[[int], None] = lambda _: None,
) -> ExperimentData:
    """Loads pairs, checks that the tracking server answers, and encodes the sentences.

    Args:
        dataset: As in a recipe.
        encoder: As in a recipe.
        device: As in a recipe.
        splits: The splits to load.
        score_max: Upper end of the scores; None for 5, or 1 for STS-B from the Hub.
        validate_dim: Called with the encoder's dimension before anything is encoded.

    Raises:
        InputError: If data, encoder, device or tracking server can't be used, or by `validate_dim`.
    """
    placed = resolve_device(device)
    pairs = load_pairs(dataset, splits=splits, score_max=score_max)
    if pairs.notice:
        console.warn(pairs.notice)
    resolved = resolve_encoder(encoder, placed.type)
    check_tracking_server()
    return prepare_data(pairs, resolved, placed, score_max=score_max, validate_dim=validate_dim, reporter=console)
