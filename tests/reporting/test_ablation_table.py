from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.trained_runs import KEY, trained
from twinsqueeze.reporting import formats, report
from twinsqueeze.reporting.ablation_table import BaselineRow, ComparisonKey, TrainedRun, build_tables
from twinsqueeze.reporting.statistics import MeanDifference, SeedStats

NOISE_FREE = [0.77, 0.78, 0.785]
NOISY = [0.80, 0.81, 0.79, 0.816]


@pytest.fixture
def runs() -> list[TrainedRun]:
    """Runs at two alphas; the last one has other names for the same data and the same encoder."""
    values = {0.75: NOISY, 0: NOISE_FREE}
    runs = [trained(value, alpha=alpha, seed=seed) for alpha in values for seed, value in enumerate(values[alpha])]
    other_names = {"dataset": "other", "encoder": "other", "device": "cpu"}
    return [*runs[:-1], replace(runs[-1], recipe=runs[-1].recipe.model_copy(update=other_names))]


def test_seeds_share_a_row_that_is_compared_with_alpha_0(runs):
    (table,) = build_tables(runs, {})
    assert [(row.recipe.alpha, len(row.runs)) for row in table.rows] == [(0, 3), (0.75, 4)]
    noise_free, noisy = table.rows
    assert noisy.scores["dev/spearman"] == SeedStats.of(NOISY)
    test = np.array(NOISY) - 0.02, np.array(NOISE_FREE) - 0.02
    assert noisy.gains == {"dev": MeanDifference.between(NOISY, NOISE_FREE), "test": MeanDifference.between(*test)}
    assert not noise_free.gains
    assert table.notes == []


def test_rows_are_sorted_by_alpha_and_the_best_is_selected_on_dev():
    runs = [trained(0.8 - alpha / 1000, alpha=alpha) for alpha in (10, 5, 0, 15)]
    runs[-1] = replace(runs[-1], metrics=runs[-1].metrics | {"test/spearman": 0.99})
    (table,) = build_tables(runs, {})
    assert [row.recipe.alpha for row in table.rows] == [0, 5, 10, 15]
    assert table.best.recipe.alpha == 0


@pytest.mark.parametrize("field", ComparisonKey._fields)
def test_runs_with_another_key_are_in_another_table(runs, field):
    other = trained(0.9, key=KEY._replace(**{field: "retrieval" if field == "task" else "other"}), alpha=0.75, seed=9)
    tables = build_tables([*runs, other], {})
    assert [sum(len(row.runs) for row in table.rows) for table in tables] == [7, 1]


def test_the_newest_run_of_a_repeated_recipe_is_used_and_notes_explain_what_is_missing():
    runs = [trained(0.9, hours=2, alpha=1), trained(0.8, hours=1, alpha=1)]
    (table,) = build_tables([*runs, trained(0.7, hours=3, alpha=1, on_test=False)], {})
    assert table.rows[0].scores["dev/spearman"].mean == 0.7
    assert [note.split(":")[0] for note in table.notes] == [
        "2 runs repeated with the same recipe and seed",
        "No run at alpha 0 of mlp32",
        "1 row with a single seed",
        "1 run without test scores",
    ]
    assert "n/a" in formats.to_markdown([table], [])


def test_names_include_the_fields_that_distinguish_rows():
    (table,) = build_tables([trained(0.8, lr=1e-3), trained(0.8), trained(0.8, dim=8)], {})
    assert [row.name for row in table.rows] == ["mlp8", "mlp32, lr 0.0002", "mlp32, lr 0.001"]
    assert list(table.families()) == [row.name for row in table.rows]


def test_every_format_of_a_table(runs):
    """Baselines that are compared in search alone are in the table of search quality."""
    scores = {"dev/spearman": SeedStats(0.8197, float("nan"), 1)}
    baseline = BaselineRow("PCA to 32, whitened", 32, 128, scores)
    search_only = BaselineRow("FAISS PQ, 16 bytes", None, 16, scores, search_only=True)
    (table,) = tables = build_tables(runs, {KEY: [baseline, search_only]})
    assert baseline.family == "PCA, whitened"
    markdown = formats.to_markdown(tables, ["a note"])
    main_table, search_table = markdown.split("### Search quality")
    lines = main_table.splitlines()
    row = lines.index(next(line for line in lines if "| mlp32 (best on dev) | 0.75 | 128 | 4 |" in line))
    assert "0.8040 ± 0.0114" in lines[row]
    assert lines[row + 1].startswith("| PCA to 32, whitened |  | 128 |")
    assert "FAISS" not in main_table
    assert "| FAISS PQ, 16 bytes | 16 |" in search_table
    assert "a note" in markdown.splitlines()

    frame = formats.to_dataframe(tables)
    assert frame["model"].tolist() == ["mlp32", "mlp32", baseline.name, search_only.name]
    assert frame["runs"].iloc[0].split() == [f"mlp32-a0-s{i}-0" for i in range(3)]

    text = formats.to_latex(tables)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 4  # scores and search
    assert r"0.8040 $\pm$ 0.0114" in text
    assert text.count("FAISS PQ, 16 bytes") == 2

    page = report.to_html([(table, [])], ["<b>"], "now")
    assert 'href="http://x/mlp32-a0.75-s3-0"' in page
    assert "&lt;b&gt;" in page
    assert "FAISS PQ, 16 bytes" in page


def test_a_summary_is_short_enough_for_mlflow():
    runs = [trained(0.8, alpha=alpha / 10, seed=seed) for alpha in range(200) for seed in range(2)]
    text = report.summary(build_tables(runs, {}), ["a note"])
    assert len(text) < 8000
    assert text.startswith("Best on dev: mlp32 at alpha")
    assert "more rows" in text
    assert "a note" in text
