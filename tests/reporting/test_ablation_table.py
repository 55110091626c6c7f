from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.helpers.trained_runs import KEY, trained
from twinsqueeze.reporting import formats, report
from twinsqueeze.reporting.ablation_table import BaselineRow, ComparisonKey, TrainedRun, build_tables, metric_name
from twinsqueeze.reporting.statistics import SeedStats

NOISE_FREE = [0.77, 0.78, 0.785]
NOISY = [0.80, 0.81, 0.79, 0.816]


@pytest.fixture
def runs() -> list[TrainedRun]:
    values = {0.75: NOISY, 0: NOISE_FREE}
    return [trained(value, alpha=alpha, seed=seed) for alpha in values for seed, value in enumerate(values[alpha])]


def test_seeds_share_a_row_that_is_compared_with_alpha_0(runs):
    (table,) = build_tables(runs, {})
    assert [(row.recipe.alpha, len(row.runs)) for row in table.rows] == [(0, 3), (0.75, 4)]
    noise_free, noisy = table.rows
    assert noisy.scores["dev/spearman"].mean == pytest.approx(np.mean(NOISY))
    assert noisy.scores["dev/spearman"].deviation == pytest.approx(np.std(NOISY, ddof=1))
    expected = stats.ttest_ind(NOISY, NOISE_FREE, equal_var=False).confidence_interval()
    assert (noisy.gains["test"].low, noisy.gains["test"].high) == pytest.approx((expected.low, expected.high))
    assert not noise_free.gains
    assert table.best is noisy
    assert table.notes == []


def test_the_best_row_is_selected_on_dev_not_on_test():
    best_on_test = trained(0.79, alpha=1)
    best_on_test = replace(best_on_test, metrics=best_on_test.metrics | {"test/spearman": 0.99})
    (table,) = build_tables([best_on_test, trained(0.80, alpha=0)], {})
    assert table.best.recipe.alpha == 0


def test_rows_are_sorted_numerically_by_alpha():
    (table,) = build_tables([trained(0.8, alpha=alpha) for alpha in (10, 5, 0, 15)], {})
    assert [row.recipe.alpha for row in table.rows] == [0, 5, 10, 15]


@pytest.mark.parametrize("field", ComparisonKey._fields)
def test_runs_with_another_key_are_in_another_table(runs, field):
    other = trained(0.9, key=KEY._replace(**{field: "retrieval" if field == "task" else "other"}), alpha=0.75, seed=9)
    tables = build_tables([*runs, other], {})
    assert [sum(len(row.runs) for row in table.rows) for table in tables] == [7, 1]


def test_names_of_data_and_encoder_make_no_difference():
    (table,) = build_tables([trained(0.8, seed=0), trained(0.8, seed=1, dataset="other", device="cpu")], {})
    assert [len(row.runs) for row in table.rows] == [2]


def test_the_newest_run_of_a_repeated_recipe_is_used():
    (table,) = build_tables([trained(0.9, hours=2), trained(0.8, hours=1), trained(0.7, hours=3)], {})
    assert table.rows[0].scores["dev/spearman"].mean == 0.7
    assert table.notes[0].startswith("2 runs repeated")


def test_notes_explain_missing_values():
    (table,) = build_tables([trained(0.8, alpha=1, on_test=False)], {})
    assert [note.split(":")[0] for note in table.notes] == [
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
    baseline = BaselineRow("PCA to 32, whitened", 32, 128, {"dev/spearman": SeedStats(0.8197, float("nan"), 1)})
    (table,) = tables = build_tables(runs, {KEY: [baseline]})
    assert baseline.family == "PCA, whitened"
    lines = formats.to_markdown(tables, ["a note"]).splitlines()
    row = lines.index(next(line for line in lines if "| mlp32 (best on dev) | 0.75 | 128 | 4 |" in line))
    assert "0.8040 ± 0.0114" in lines[row]
    assert lines[row + 1].startswith("| PCA to 32, whitened |  | 128 |")
    assert "a note" in lines

    frame = formats.to_dataframe(tables)
    assert frame["alpha"].tolist()[:2] == [0, 0.75]
    assert frame["dev/spearman"].iloc[1] == pytest.approx(np.mean(NOISY))
    assert frame["runs"].iloc[0].split() == [f"mlp32-a0-s{i}-0" for i in range(3)]

    text = formats.to_latex(tables)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 4  # scores and search
    assert r"0.8040 $\pm$ 0.0114" in text

    page = report.to_html([(table, [])], ["<b>"], "now")
    assert 'href="http://x/mlp32-a0.75-s3-0"' in page
    assert "&lt;b&gt;" in page


def test_a_summary_is_short_enough_for_mlflow():
    runs = [trained(0.8, alpha=alpha / 10, seed=seed) for alpha in range(200) for seed in range(2)]
    text = report.summary(build_tables(runs, {}), ["a note"])
    assert len(text) < 8000
    assert text.startswith("Best on dev: mlp32 at alpha")
    assert "more rows" in text
    assert "a note" in text


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("dev", "neighbor_recall"), "dev/neighbor_recall"),
        (("test", "mrr"), "search/test_mrr"),
        (("test", "spearman", "int8"), "search/test_spearman_int8"),
        (("dev", "recall_at_1", "asymmetric"), "search/dev_recall_at_1_asymmetric"),
    ],
)
def test_scores_of_search_and_storage_forms_have_a_section_of_their_own(arguments, name):
    assert metric_name(*arguments) == name
