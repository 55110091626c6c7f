import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.helpers.trained_runs import KEY, trained
from twinsqueeze.reporting import ablation_figures, formats, report
from twinsqueeze.reporting.ablation_table import AblationTable, BaselineRow, build_tables
from twinsqueeze.reporting.statistics import SeedStats

NAN = float("nan")


def baseline(name: str, size: int, spearman: float, dim: int | None = None, **settings) -> BaselineRow:
    scores = {f"{split}/spearman": SeedStats(spearman, NAN, 1) for split in ("dev", "test")}
    return BaselineRow(name, dim, size, scores, **settings)


@pytest.fixture
def table() -> AblationTable:
    """Three seeds at alpha 0 and 0.75, of which the last was not evaluated on test."""
    runs = [
        trained(0.7 + alpha / 10 + seed / 100, alpha=alpha, seed=seed, on_test=seed < 2)
        for alpha in (0, 0.75)
        for seed in range(3)
    ]
    baselines = [
        baseline("uncompressed, int8", 384, 0.86, search_only=True),
        baseline("uncompressed", 1536, 0.87),
        baseline("PCA to 32", 128, 0.79, dim=32),
        baseline("PCA to 32, whitened", 128, 0.80, dim=32),
        baseline("signs of 384, centered", 48, 0.60),
        baseline("FAISS OPQ+PQ, float queries, 64 bytes", 64, 0.99, search_only=True),
    ]
    return build_tables(runs, {KEY: baselines})[0]


def test_weak_baselines_are_in_the_csv_and_in_other_tables_if_they_are_asked_for(table):
    weak = [baseline(f"weak {i}", 128, 0.1 + i / 100) for i in range(4)]
    table = replace(table, baselines=[*table.baselines, *weak])
    assert "weak 3" in formats.to_markdown([table], [])  # the third best of its size
    assert "weak 0" not in formats.to_markdown([table], [])
    assert "weak 0" in formats.to_markdown([replace(table, shows_all=True)], [])
    assert "weak 0" in formats.to_dataframe([table])["model"].tolist()


def test_seeds_are_counted_per_split(table):
    column = formats.ablation_scores(table)[0].index("seeds")
    for splits, seeds in ((["dev"], "3"), (["test"], "2"), (["dev", "test"], "3 dev, 2 test")):
        assert formats.ablation_scores(table, splits)[1][0][column] == seeds
    assert formats.to_dataframe([table])[["dev/seeds", "test/seeds"]].iloc[0].tolist() == [3, 2]


def test_the_conclusion_names_scores_gain_and_the_baselines_ahead(table):
    text = report.conclusion(table)
    assert text.startswith(
        "Best on dev: mlp32 at alpha 0.75, 128 bytes per vector: Spearman 0.7850 ± 0.0100 on dev (3 seeds) and "
        "0.7600 ± 0.0071 on test (2 seeds). Spearman gain over alpha 0: +0.0750"
    )
    assert text.endswith(
        "Better on dev among baselines of at most 128 bytes: PCA to 32, whitened 0.8000, PCA to 32 0.7900."
    )
    better = replace(table, rows=table.rows[:1], baselines=table.baselines[4:])
    assert report.conclusion(better).endswith("No baseline of at most 128 bytes is better on dev.")


def test_key_results_have_a_baseline_of_every_series_no_larger_if_there_is_one(table):
    assert [row[:3] for row in report.key_results(table)[1]] == [
        ["mlp32, alpha 0.75", "128", "0.7850 ± 0.0100"],
        ["signs of 384, centered", "48", "0.6000"],
        ["PCA to 32, whitened", "128", "0.8000"],
        ["uncompressed", "1,536", "0.8700"],
    ]


def test_the_page_has_its_contents_and_a_table_per_split(table):
    page = report.to_html([(table, [])], [], "now")
    targets = re.findall(r'href="#([\w-]+)"', page)
    assert targets == ["table1", "table1-dev", "table1-test", "table1-details"]
    assert all(page.count(f'id="{target}"') == 1 for target in targets)
    assert (
        page.index("Best on dev: mlp32") < page.index("<table") < page.index("Contents") < page.index("Scores on dev")
    )


def test_figures_have_at_most_eight_series_and_the_best_in_color():
    rows = build_tables([trained(0.9 - (alpha - 0.5) ** 2, alpha=alpha) for alpha in range(12)], {})[0].rows
    best = rows[1]
    shown = ablation_figures.shown_alphas(rows, best)
    assert len(shown) == 7
    assert {0, 1, 11} <= {row.recipe.alpha for row in shown}
    assert ablation_figures.shown_alphas(rows[:7], best) == rows[:7]


def test_scores_against_alpha_share_their_axis(table):
    alpha, train = ablation_figures.score_figures(table, table.rows)
    assert [axes.get_title()[:17] for axes in alpha.figure.axes] == ["Spearman on dev: ", "Spearman on test:"]
    assert len({axes.get_ylim() for axes in alpha.figure.axes}) == 1
    names = [text.get_text() for text in alpha.figure.legends[0].get_texts()]
    assert names == ["mlp32", "signs of 384, centered", "PCA to 32, whitened", "uncompressed"]
    assert [text.get_text() for text in train.figure.axes[0].texts] == ["0", "0.75"]
    assert Image.open(io.BytesIO(alpha.png)).width > 600


def test_scores_against_dim_join_the_dims_of_an_alpha_and_those_of_pca():
    """Of runs without neighbor recall, as versions before recorded them."""
    runs = [trained(0.7 + dim / 1000, dim=dim, alpha=alpha) for dim in (8, 32) for alpha in (0, 0.75)]
    pca = [baseline(f"PCA to {dim}", 4 * dim, 0.6 + dim / 1000, dim=dim) for dim in (8, 32)]
    (several,) = build_tables(runs, {KEY: pca})
    figure = ablation_figures.table_figures([several], several)[-1]
    assert figure.name == "spearman_against_dim"
    drawn = dict(zip(*figure.figure.axes[0].get_legend_handles_labels()[::-1], strict=True))
    assert drawn["alpha 0.75"].lines[0].get_xydata() == pytest.approx(np.array([(8, 0.708), (32, 0.732)]))
    assert drawn["PCA"].lines[0].get_xydata() == pytest.approx(np.array([(8, 0.608), (32, 0.632)]))
