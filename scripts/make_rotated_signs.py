"""Scores FAISS's rotated signs of a PCA on STS-B and writes experiments/results/rotated_signs.csv.

The scores with float queries are in rotated_signs/table.csv as well, with the columns of `compare`.

    python -m scripts.make_rotated_signs [--dataset stsb]

`PCAR` is a PCA with a random rotation, and `SQtqmse1` stores a sign of each dimension. Both are fitted on the distinct
sentences of the train split, with FAISS's own seeds. With float queries, each sentence of a pair is the query once.
"""

import argparse
import csv

import faiss
import torch

from scripts.docs_macros import RESULTS
from twinsqueeze.data.encoder import DEFAULT_ENCODER, embed_splits, resolve_encoder
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.evaluation.evaluator import Evaluator
from twinsqueeze.types import FloatArray
from twinsqueeze.utils.disk_cache import DiskCache

INDEXES = ("PCAR256,L2norm,SQtqmse1", "PCAR128,L2norm,SQtqmse1")
# The last title differs from the third by a space: column names of a CSV are unique.
TITLES = ("FAISS index", "bytes", "test Spearman, float queries", "stored queries")
TITLES += ("neighbor recall, float queries", "stored queries ")


def score_index(factory: str, train: FloatArray, evaluator: Evaluator) -> list[str]:
    """Returns a row of the table."""
    index = faiss.index_factory(train.shape[1], factory)
    index.train(train)
    queries = evaluator.split.embeddings
    for i in range(index.chain.size()):
        queries = faiss.downcast_VectorTransform(index.chain.at(i)).apply(queries)
    codec = faiss.downcast_index(index.index)
    stored = codec.sa_decode(codec.sa_encode(queries))
    scores = [evaluator.score_vectors(stored, queries), evaluator.score_vectors(stored)]
    spearman = [f"{score['spearman']:.4f}" for score in scores]
    return [f"`{factory}`", str(codec.sa_code_size()), *spearman, *(f"{s['neighbor_recall']:.2f}" for s in scores)]


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="stsb", help="the Hub's, or a folder with STS-B (default: %(default)s)")
    pairs = load_pairs(parser.parse_args().dataset)
    encoded = embed_splits(pairs.splits, resolve_encoder(DEFAULT_ENCODER), DiskCache())
    evaluator = Evaluator(encoded["test"], "tanh", torch.device("cpu"))
    rows = [TITLES, *(score_index(factory, encoded["train"].embeddings, evaluator) for factory in INDEXES)]
    with (RESULTS / "rotated_signs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    (RESULTS / "rotated_signs").mkdir(exist_ok=True)
    with (RESULTS / "rotated_signs" / "table.csv").open("w", encoding="utf-8", newline="") as file:
        table = [("model", "bytes", "test/spearman", "test/neighbor_recall")]
        table += [(row[0].strip("`"), row[1], row[2], row[4]) for row in rows[1:]]
        csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
