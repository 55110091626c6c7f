import numpy as np
import pytest

from tests.helpers.trained_runs import KEY, run_with_search_scores
from twinsqueeze.reporting import method_plots, search_table
from twinsqueeze.reporting.ablation_table import BaselineRow, build_tables
from twinsqueeze.reporting.method_plots import MethodPoints, pareto_front
from twinsqueeze.reporting.statistics import SeedStats

NAN = float("nan")


def baseline(name: str, size: int, spearman: float, recall: float = 0.5) -> BaselineRow:
    scores = {"spearman": SeedStats(spearman, NAN, 1), "neighbor_recall": SeedStats(recall, NAN, 1)}
    return BaselineRow(
        name, None, size, {f"{split}/{name}": scores[name] for split in ("dev", "test") for name in scores}
    )


@pytest.fixture
def rows():
    """A compressor of 128 bytes as float32, 32 as int8 and 4 as signs, and baselines of every series but OPQ."""
    baselines = [
        baseline("uncompressed", 1536, 0.86, 1),
        baseline("rotated signs of 384", 48, 0.85),
        baseline("PCA, whitened", 128, 0.81),
        baseline("PCA", 128, 0.70),
        baseline("first 32", 128, 0.84),
        baseline("PCA, float queries", 128, 0.99),
    ]
    return search_table.rows_from_tables(build_tables([run_with_search_scores(0.8)], {KEY: baselines}))


def lines(axes) -> dict:
    """The labeled lines of a panel."""
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


@pytest.mark.parametrize(
    ("name", "label"),
    [("FAISS OPQ+PQ", "OPQ+PQ"), ("FAISS PQ", None), ("PCA, signs", "PCA"), ("random projection", None)],
)
def test_methods_belong_to_one_of_five_series_or_none(name, label):
    assert method_plots.find_series(name) == label


def test_the_pareto_front_has_the_points_that_none_exceeds():
    points = np.array([(0.2, 0.9), (0.5, 0.8), (0.4, 0.8), (0.9, 0.1), (0.9, 0.1), (0.1, NAN)])
    assert pareto_front(points) == [0, 1, 3, 4]  # the third has less of one and as much of the other


def test_the_front_of_sizes_leaves_out_sizes_that_are_worse_than_smaller_ones():
    points = MethodPoints([16, 32, 32, 64, 128, 8], {"dev/mrr": [0.5, 0.6, 0.7, 0.65, 0.698, NAN]})
    assert points.size_front("dev/mrr") == [5, 0, 2, 4]  # 0.698 is as good as 0.7


def test_the_quality_figure_has_a_panel_per_score_and_the_best_of_every_size(rows):
    figure = search_table.quality_figure(rows)()
    assert [axes.get_title() for axes in figure.axes] == ["Spearman on test", "Neighbor recall on test"]
    drawn = lines(figure.axes[0])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert list(drawn) == labels == ["TwinSqueeze", "signs, TurboQuant", "PCA", "uncompressed"]
    # float32 is the best, whose search scores rank int8 above the signs
    assert drawn["TwinSqueeze"].get_xydata() == pytest.approx(np.array([[4, 0.1], [32, 0.2], [128, 0.78]]))
    assert drawn["PCA"].get_xydata().tolist() == [[128, 0.81]]
    dots = [line.get_xydata().tolist() for line in figure.axes[0].get_lines() if line.get_marker() == "."]
    assert [[128, 0.70]] in dots
    colors = {label: line.get_color() for label, line in drawn.items()}
    assert colors.pop("TwinSqueeze") == method_plots.STRONG
    assert all(len({color[i : i + 2] for i in (1, 3, 5)}) == 1 for color in colors.values())  # grays


def test_dev_selects_what_test_shows():
    methods = {"PCA": MethodPoints([32, 32], {"dev/mrr": [0.9, 0.8], "test/mrr": [0.1, 0.2]})}
    figure = method_plots.plot_quality_vs_bytes(methods, {"test/mrr": "MRR"}, "dev")
    assert lines(figure.axes[0])["PCA"].get_xydata().tolist() == [[32, 0.1]]


def test_spearman_against_neighbor_recall_joins_the_sizes_of_a_method(rows):
    figure = search_table.pareto_figure(rows)
    dev, test = figure.axes
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"Spearman and neighbor recall on {split}" for split in ("dev", "test")]
    assert dev.get_ylim() == test.get_ylim()
    drawn = lines(dev)["TwinSqueeze"]
    assert drawn.get_xydata() == pytest.approx(np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.8]]))
    assert sorted(text.get_text() for text in dev.texts) == sorted(["4", "128", "48", "128", "1,536"])


def test_trained_compressors_of_one_size_are_joined_as_their_pareto_front():
    recipe = {"dim": 128, "architecture": "linear", "quantizer": "product", "label_transform": "linear"}
    runs = [run_with_search_scores(spearman, lr=lr, **recipe) for lr, spearman in ((1e-3, 0.8), (2e-3, 0.9))]
    for run, recall in zip(runs, (0.7, 0.6), strict=True):
        run.metrics["dev/neighbor_recall"] = recall
    figure = search_table.pareto_figure(search_table.rows_from_tables(build_tables(runs, {})))
    assert lines(figure.axes[0])["TwinSqueeze"].get_xydata() == pytest.approx(np.array([[0.6, 0.9], [0.7, 0.8]]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["32"]


def test_labels_that_would_cover_another_are_hidden():
    methods = {
        "uncompressed": MethodPoints([384, 1536], {"dev/neighbor_recall": [0.990, 1.0], "dev/mrr_at_10": [0.80, 0.81]}),
        "PCA": MethodPoints([16], {"dev/neighbor_recall": [0.5], "dev/mrr_at_10": [0.5]}),
    }
    figure = method_plots.plot_score_vs_neighbor_recall(methods, "mrr_at_10", ["dev"], "dev")
    shown = [text.get_text() for text in figure.axes[0].texts if text.get_visible()]
    assert shown == ["1,536", "16"]
