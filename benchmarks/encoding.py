"""Speed of the sentence encoder: `python -m benchmarks.encoding`.

The sentences of dev are encoded in three ways, in turn: by `SentenceTransformer.encode` with batches of the same size,
as trainings do, and as trainings do in bfloat16. The scores on dev show what bfloat16 costs.
"""

import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import torch

from benchmarks.results import report
from twinsqueeze.data.dataset import Split
from twinsqueeze.data.encoder import BATCH_SIZE, BFLOAT16, encode_in_batches, resolve_encoder, sort_by_length
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.recipe import Recipe
from twinsqueeze.types import FloatArray


def ways(sentences: list[str]) -> dict[str, Callable[[], FloatArray]]:
    """Returns functions from nothing to the sentences' vectors, by name."""
    name = Recipe().encoder
    encode, encode_bfloat16 = (resolve_encoder(each, "cpu").load() for each in (name, name + BFLOAT16))
    model = resolve_encoder(name, "cpu").load_model()
    return {
        "SentenceTransformer.encode": lambda: model.encode(
            sentences, batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False
        ),
        "twinsqueeze": lambda: np.concatenate(list(encode_in_batches(encode, sentences))),
        "twinsqueeze, bfloat16": lambda: np.concatenate(list(encode_in_batches(encode_bfloat16, sentences))),
    }


def score(dev: Split, sentences: list[str], vectors: FloatArray, exact: FloatArray) -> dict[str, float]:
    """Returns the scores of vectors of dev's sentences, whose neighbors are compared with those of exact vectors."""
    row = {text: i for i, text in enumerate(sentences)}
    encoded = dev.encode(exact, row)
    evaluator = Evaluator(encoded, Recipe().label_transform, torch.device("cpu"))
    return evaluator.score_vectors(dev.encode(vectors, row).embeddings)


@click.command()
@click.option("--dataset", default="auto", show_default=True, help="As for `twinsqueeze main`; scored pairs.")
@click.option("--rounds", default=5, show_default=True, help="Rounds, in which each way is timed in turn.")
def main(dataset: str, rounds: int) -> None:
    """Prints sentences per second and the ratio to `SentenceTransformer.encode`, as medians over rounds."""
    data = load_pairs(dataset, splits=("train", "dev"))
    dev = data.splits["dev"]
    sentences = sort_by_length(dev.texts)
    functions = ways(sentences)
    vectors = {name: encode() for name, encode in functions.items()}  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, encode in functions.items():
            start = time.perf_counter()
            encode()
            seconds[name].append(time.perf_counter() - start)
    first, *_ = seconds
    print(f"{data.name}: {len(sentences):,} sentences of dev, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        scores = score(dev, sentences, vectors[name], vectors[first])
        print(
            f"{name:<27} {len(sentences) / statistics.median(values):6.0f} a second, "
            f"largest difference {np.abs(vectors[name] - vectors[first]).max():.1e}, "
            f"Spearman {scores['spearman']:.4f}, neighbor recall {scores['neighbor_recall']:.4f}"
        )
        if name != first:
            ratios = [plain / ours for plain, ours in zip(seconds[first], values, strict=True)]
            report(f"encoding by {name} against {first}", ratios, "times as fast")


if __name__ == "__main__":
    main()
