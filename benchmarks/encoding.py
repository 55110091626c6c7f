"""Speed of the sentence encoder: `python -m benchmarks.encoding`.

The sentences of dev are encoded in three ways, in turn: by `SentenceTransformer.encode` with its default batch size, as
trainings do, and as trainings do in bfloat16. The scores on dev show what bfloat16 costs. Also timed are the matrix
products of the model's layers alone, of as many rows as the sentences have tokens, which no way of batching can avoid.
"""

import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.results import report
from twinsqueeze.data.dataset import Split
from twinsqueeze.data.embedding import encode_texts, encoder_threads, sort_by_length, split_by_tokens
from twinsqueeze.data.encoder import BFLOAT16, MAX_BATCH_TOKENS, BatchEncoder, resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.recipe import Recipe
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.compute import map_threaded

PRODUCTS = "matrix products"


def ways(sentences: list[str]) -> dict[str, Callable[[], FloatArray]]:
    """Returns functions from nothing to the sentences' vectors, by name."""
    name = Recipe().encoder
    plain, rounded = (resolve_encoder(each, "cpu").load() for each in (name, name + BFLOAT16))
    return {
        "SentenceTransformer.encode": lambda: plain.model.encode(
            sentences, normalize_embeddings=True, show_progress_bar=False
        ),
        "twinsqueeze": lambda: encode_texts(plain, sentences),
        "twinsqueeze, bfloat16": lambda: encode_texts(rounded, sentences),
    }


def matrix_products(model: SentenceTransformer, sentences: list[str]) -> Callable[[], object]:
    """Returns a function that multiplies the weights of the linear layers with as many rows as there are tokens."""
    # The pooler's layer multiplies one token of each sentence.
    layers = [
        layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and "pool" not in name
    ]
    weights = [layer.weight.detach().T for layer in layers]
    batch_size = MAX_BATCH_TOKENS["cpu"]
    inputs = {size: torch.randn(batch_size, size) for size in {len(weight) for weight in weights}}

    def multiply(rows: int) -> None:
        for weight in weights:
            torch.mm(inputs[len(weight)][:rows], weight)

    full, rest = divmod(int(BatchEncoder(model).count_tokens(sentences).sum()), batch_size)
    return lambda: list(map_threaded(iter([batch_size] * full + [rest]), multiply, encoder_threads()))


def show_padding(model: SentenceTransformer, sentences: list[str]) -> None:
    """Prints how many tokens the batches have with their padding, relative to those of the sentences."""
    num_tokens = BatchEncoder(model).count_tokens(sentences)
    by_tokens = split_by_tokens(num_tokens, MAX_BATCH_TOKENS["cpu"])
    by_characters = (np.arange(start, min(start + 32, len(sentences))) for start in range(0, len(sentences), 32))
    for name, batches in (("characters", by_characters), ("tokens", by_tokens)):
        padded = sum(num_tokens[rows].max() * len(rows) for rows in batches)
        print(f"sorted by {name}: {padded / num_tokens.sum():.2f} times the tokens, with padding")


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
    model = resolve_encoder(Recipe().encoder, "cpu").load_model()
    show_padding(model, sentences)
    alone = matrix_products(model, sentences)
    timed: dict[str, Callable[[], object]] = {**functions, PRODUCTS: alone}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, function in timed.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    first, *_ = seconds
    print(f"{data.name}: {len(sentences):,} sentences of dev, {torch.get_num_threads()} threads")
    for name in functions:
        values = seconds[name]
        scores = score(dev, sentences, vectors[name], vectors[first])
        print(
            f"{name:<27} {len(sentences) / statistics.median(values):6.0f} a second, "
            f"largest difference {np.abs(vectors[name] - vectors[first]).max():.1e}, "
            f"Spearman {scores['spearman']:.4f}, neighbor recall {scores['neighbor_recall']:.4f}"
        )
        if name != first:
            ratios = [plain / ours for plain, ours in zip(seconds[first], values, strict=True)]
            report(f"encoding by {name} against {first}", ratios, "times as fast")
    ratios = [bound / ours for bound, ours in zip(seconds[PRODUCTS], seconds["twinsqueeze"], strict=True)]
    report("encoding by twinsqueeze", ratios, "of the speed of its matrix products alone")


if __name__ == "__main__":
    main()
