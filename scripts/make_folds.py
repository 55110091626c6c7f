"""Cuts a train split into folds, to see what a recipe does on pairs that no choice was made on.

    python scripts/make_folds.py FOLDER OUTPUT [--folds 5]
    python scripts/make_folds.py FOLDER OUTPUT --cuts 2000 2450

Every folder OUTPUT/0, OUTPUT/1, … is data as `dataset` takes it: its test is a part of FOLDER's train, its train the rest
of it, and its dev FOLDER's own. No sentence is in two parts, in whatever pairs it stands. FOLDER's test is not opened.

With cuts the parts are those between these row numbers, and what a recipe does on text of another kind is seen: STS-B's
train has captions, forum posts from row 2000 and news from row 2450. Pairs of a train that share a sentence with its
test are left out of it.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupKFold

from twinsqueeze.data.dataset import NO_ROWS
from twinsqueeze.data.sentence_pairs import load_pairs
from twinsqueeze.types import IntArray


def groups(pairs: pd.DataFrame) -> IntArray:
    """(P,) the number of each pair's group; pairs of different groups have no sentence in common."""
    sentences, _ = pd.factorize(pd.concat([pairs.sentence1, pairs.sentence2]))
    first, second = np.split(sentences, 2)
    size = sentences.max() + 1
    _, group = connected_components(coo_array((np.ones(len(pairs)), (first, second)), shape=(size, size)))
    return np.asarray(group[first])


def folds(number: int, group: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Rows of the rest and of a part, for each of a number of parts."""
    yield from GroupKFold(number).split(group, groups=group)


def cut_at(rows: Sequence[int], group: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Rows of the rest and of a part, for each part between some row numbers."""
    for part in np.split(np.arange(len(group)), rows):
        yield np.flatnonzero(~np.isin(group, group[part])), part


def main() -> None:
    """Reads the pairs and writes the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="data with train and dev")
    parser.add_argument("output", type=Path)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--folds", type=int, default=5)
    how.add_argument("--cuts", type=int, nargs="+", metavar="ROW")
    options = parser.parse_args()
    splits = load_pairs(options.folder, splits=("train", "dev")).splits
    frames = {name: pd.DataFrame(split.columns(NO_ROWS)) for name, split in splits.items()}
    train = frames["train"]
    group = groups(train)
    for number, (rest, part) in enumerate(cut_at(options.cuts, group) if options.cuts else folds(options.folds, group)):
        folder = options.output / str(number)
        folder.mkdir(parents=True)
        for name, frame in {"train": train.iloc[rest], "dev": frames["dev"], "test": train.iloc[part]}.items():
            frame.to_csv(folder / f"{name}.csv", index=False)
        print(f"{folder}: {len(rest):,} pairs to train on, {len(part):,} to test on")


if __name__ == "__main__":
    main()
