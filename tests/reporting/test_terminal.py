"""What commands print at the end: the headline, and tables of a fixed width."""

import re
from types import SimpleNamespace

import pytest

from tests.helpers.trained_runs import KEY, trained
from twinsqueeze.evaluation.baselines import BaselineScores
from twinsqueeze.reporting import terminal
from twinsqueeze.reporting.ablation_table import BaselineRow, build_tables
from twinsqueeze.reporting.headline import headline
from twinsqueeze.reporting.search_table import SearchRow, VectorFormat, rows_from_run
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.task import SIMILARITY

NAN = float("nan")
VECTORS = VectorFormat("mlp32-a0.75-s0", "float32", 32, 128)
COLUMNS = ["vectors", "bytes", "Spearman", "Spearman", "neighbor recall", "recall@10", "MRR", "recall@1"]


def scores(dev: float, test: float) -> dict[str, dict[str, float]]:
    return {split: dict.fromkeys(SIMILARITY.search_scores, value) for split, value in (("dev", dev), ("test", test))}


RESULTS = {
    split: SimpleNamespace(labels=range(9), intervals={}, scores=each, by_precision={"int8": each})
    for split, each in scores(0.7, 0.6).items()
}


def run_rows(*baselines: tuple[str, int, float, float]) -> list[SearchRow]:
    """The rows of a run with baselines: name, bytes, and scores on dev and test."""
    found = [BaselineScores(name, None, size, False, 1, scores(*values), {}) for name, size, *values in baselines]
    return rows_from_run(VECTORS, RESULTS, found, SIMILARITY)


UNCOMPRESSED = ("uncompressed", 1536, 0.87, 0.82)


@pytest.mark.parametrize(
    ("baselines", "expected"),
    [
        (
            [
                ("PCA", 128, 0.8, 0.5),
                ("first 32", 128, 0.5, 0.7),
                ("signs", 48, 0.9, 0.8),
                ("PQ, 32 bytes", 32, 0.6, 0.9),
            ],
            [
                "The best baseline of this size, PCA, is better on dev and not better on test: 0.8000, 0.5000.",
                "The best smaller one, signs, is better on dev and test in 48 bytes: 0.9000, 0.8000.",
            ],
        ),
        (
            [("PQ", 128, 0.69, 0.6), ("PQ, float queries", 128, 0.9, 0.9), ("PQ, 32 bytes", 32, 0.65, 0.5)],
            ["The best baseline of this size, PQ, is not better on dev and test: 0.6900, 0.6000."],
        ),
        (
            [("PQ, 32 bytes", 32, 0.65, 0.5)],
            ["The best smaller one, PQ, is not better on dev and test in 32 bytes: 0.6500, 0.5000."],
        ),
    ],
)
def test_the_headline_says_whether_the_strongest_baselines_are_better(baselines, expected):
    rows = run_rows(UNCOMPRESSED, *baselines)
    ours = next(row for row in rows if row.is_trained)
    first, *others = headline(VECTORS, ours, rows, ["dev", "test"])
    assert first == "32 floats, 128 bytes: Spearman dev 0.7000, test 0.6000 (uncompressed 0.8700, 0.8200)."
    assert others == expected


@pytest.mark.parametrize(("width", "num_columns"), [(60, 5), (80, 7), (200, 8)])
def test_a_run_prints_twelve_rows_that_fit_the_terminal_and_all_if_verbose(monkeypatch, capsys, width, num_columns):
    monkeypatch.setenv("COLUMNS", str(width))
    many = [(f"PQ {size}-{i}, {size} bytes", size, i / 100, i / 100) for size in (128, 64, 32) for i in range(9)]
    rows = run_rows(UNCOMPRESSED, *many)
    terminal.print_run(VECTORS, RESULTS, rows, verbose=False)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    _, header, *table = printed.partition("\n\n")[2].splitlines()
    assert re.split(r" {2,}", header) == COLUMNS[:num_columns]
    best = {size: [f"PQ {size}-{i}" for i in (6, 7, 8)] for size in (128, 64, 32)}
    expected = ["uncompressed", "this model", *best[128], *best[64], "this model, int8", *best[32]]
    assert [line.split("  ")[0] for line in table] == expected
    terminal.print_run(VECTORS, RESULTS, rows, verbose=True)
    printed = capsys.readouterr().out
    assert all(printed.count(name.partition(",")[0]) >= 4 for name, *_ in many)


def test_an_ablation_prints_its_best_rows_and_counts_the_others(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    names = [("uncompressed", 1536, 0.9), *((f"PCA {i}", 128, i / 100) for i in range(9))]
    baselines = [
        BaselineRow(name, None, size, {"dev/spearman": SeedStats(value, NAN, 1)}) for name, size, value in names
    ]
    runs = [trained(0.5 + alpha / 100, alpha=alpha, seed=seed) for alpha in range(10) for seed in (0, 1)]
    other = trained(0.4, key=KEY._replace(loss="pearson"))
    tables = build_tables([*runs, other], {KEY: baselines})
    for verbose, num_alphas in ((False, 8), (True, 10)):
        terminal.print_ablation(tables, verbose=verbose)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert sum(line.startswith("Best on dev: mlp32") for line in lines) == 2
        first = lines[: lines.index("data, encoder all-MiniLM-L6-v2, labels tanh, loss pearson")]
        assert len({line.split("128")[0] for line in first if re.match(r"mlp32 .*128", line)}) == num_alphas
        assert ("2 more rows of trained compressors: --verbose prints all." in lines) != verbose
        assert verbose or sum(line.startswith(("uncompressed", "PCA ")) for line in lines) == 4
