"""Tables, figures and texts of runs on data without human scores."""

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.trained_runs import run_of_task
from twinsqueeze.evaluation.baselines import BaselineScores
from twinsqueeze.evaluation.bootstrap import Interval
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting import ablation_figures, formats, report, run_loader, run_plots, search_table, terminal
from twinsqueeze.reporting.ablation_table import AblationTable, BaselineRow, build_tables, metric_name
from twinsqueeze.reporting.search_table import VectorFormat
from twinsqueeze.reporting.statistics import MeanDifference, SeedStats
from twinsqueeze.task import NEIGHBORS, RETRIEVAL, SIMILARITY, Task

TASKS = pytest.mark.parametrize("task", [RETRIEVAL, NEIGHBORS], ids=lambda task: task.name)
NAMES = {RETRIEVAL: "nDCG@10", NEIGHBORS: "neighbor recall"}
NOISE_FREE, NOISY = [0.77, 0.78], [0.80, 0.82, 0.81]


def make_table(task: Task, **recipe) -> AblationTable:
    values = {0: NOISE_FREE, 0.75: NOISY}
    runs = [run_of_task(task, v, alpha=a, seed=i, **recipe) for a in values for i, v in enumerate(values[a])]
    scores = {metric_name(s, name): SeedStats(0.79, float("nan"), 1) for s in ("dev", "test") for name in task.scores}
    key = runs[0].comparison_key
    (table,) = build_tables(runs, {key: [BaselineRow("PCA to 32", 32, 128, scores)]})
    return table


def make_rows(task: Task, precision: str = "float32") -> tuple[dict, list]:
    """Results on dev and test of 0.7 and 0.6, with the rows of the search table."""
    results = {
        split: SimpleNamespace(
            labels=np.array([]),
            query_scores={name: np.full(1234, value) for name in task.interval_scores},
            scores=dict.fromkeys(task.scores, value),
            intervals=dict.fromkeys(task.interval_scores, Interval(value - 0.01, value + 0.01)),
            by_precision={"binary": dict.fromkeys(task.search_scores, 0.5)} if precision == "float32" else {},
        )
        for split, value in (("dev", 0.7), ("test", 0.6))
    }
    scores = dict.fromkeys(("dev", "test"), dict.fromkeys(task.scores, 0.75))
    baselines = [BaselineScores("uncompressed", None, 1536, False, 1, scores, {})]
    vectors = VectorFormat("x", precision, 32, 4 if precision == "binary" else 128)
    return results, search_table.rows_from_run(vectors, results, baselines, task)


@TASKS
def test_tables_and_conclusions_are_about_the_selection_score(task):
    table, name = make_table(task), NAMES[task]
    others = ["neighbor recall"] if task is RETRIEVAL else []
    assert table.title == "data, encoder all-MiniLM-L6-v2"
    assert table.best.recipe.alpha == 0.75
    assert table.best.gains["dev"] == MeanDifference.between(NOISY, NOISE_FREE)
    header, (_, noisy, baseline) = formats.ablation_scores(table, ["dev"])
    assert header[4:-2] == [name, f"{name} gain", *others]
    assert [noisy[4], *noisy[6:-2]] == ["0.8100 ± 0.0100", *["0.81 ± 0.01"] * len(others)]
    assert baseline[4:] == ["0.7900", "", *["0.79"] * len(others), "", ""]
    assert formats.compact_scores(table, ["dev"])[0] == ["model", "alpha", "seeds", *header[4:-2]]
    best = {f"summary/best_{split}_{task.selection}": 0.81 for split in ("dev", "test")}
    assert report.best_scores(table) == pytest.approx(best)
    assert report.key_results(table)[0][2:] == [f"dev {name}", f"test {name}", *(f"test {other}" for other in others)]
    assert f"128 bytes per vector: {name} 0.8100 ± 0.0100 on dev (3 seeds)" in report.conclusion(table)


@TASKS
def test_texts_name_the_scores_of_the_task(task, capsys):
    table = make_table(task)
    terminal.print_ablation([table], verbose=True)
    texts = [
        capsys.readouterr().out,
        formats.to_markdown([table], []),
        formats.to_latex([table]),
        report.summary([table], []),
        report.to_html([(table, [])], [], "now"),
        formats.to_dataframe([table]).to_csv(),
    ]
    assert not [text for text in texts if "pearman" in text or "labels tanh" in text]
    assert f"test/{task.selection}_gain" in texts[-1]
    assert [text.count("Queries are floats") for text in texts] == [0, 2, 0, 1, 2, 0]


def test_a_document_explains_the_scores_of_every_task_once():
    tables = [make_table(task) for task in (RETRIEVAL, NEIGHBORS, SIMILARITY)]
    for text in (report.summary([*tables, tables[0]], []), formats.to_markdown([*tables, tables[0]], [])):
        paragraphs = [part for part in text.split("\n\n") if part.startswith("Values are means")]
        scores = [part.partition("highest mean ")[2].partition(" on dev")[0] for part in paragraphs]
        assert scores == ["nDCG@10", "neighbor recall", "Spearman"]


@TASKS
def test_a_run_prints_its_headline_scores_and_intervals(task, capsys):
    results, rows = make_rows(task)
    terminal.print_run(VectorFormat("x", "float32", 32, 128), results, rows, verbose=True)
    printed = " ".join(capsys.readouterr().out.split())
    name = NAMES[task]
    assert printed.startswith(f"32 floats, 128 bytes: {name} dev 0.7000, test 0.6000 (uncompressed 0.7500, 0.7500). ")
    assert f"dev: 1,234 {task.unit}" in printed
    assert f"95% intervals over {task.unit}: {name} 0.6900 to 0.7100" in printed
    others = ", neighbor recall 0.70 (95% interval 0.69 to 0.71)" if task is RETRIEVAL else ""
    assert formats.scores_sentence("dev", results["dev"], task) == (
        f"On dev (1,234 {task.unit}): {name} 0.7000 (95% interval 0.6900 to 0.7100){others}."
    )


@TASKS
def test_a_quantized_compressor_has_one_row(task):
    _, rows = make_rows(task, "binary")
    assert [row[:3] for row in search_table.format_rows(rows, ["dev"])[1]][1:] == [["x", "4", "0.7000"]]
    table = make_table(task, quantizer="sign", architecture="linear")
    assert [row.name for row in search_table.rows_from_tables([table])] == ["PCA to 32", "linear32-sign, alpha 0.75"]


@TASKS
def test_figures_show_the_selection_score(task):
    table, name = make_table(task), "nDCG@10" if task is RETRIEVAL else "Neighbor recall"
    shown = [*ablation_figures.table_figures([table], table), *ablation_figures.score_figures(table, table.rows)]
    expected = {
        "quality_against_bytes": [f"{name} on test"],
        f"{task.selection}_against_alpha": [f"{name} on {split}: +0.0350 at alpha 0.75" for split in ("dev", "test")],
        "train_against_test": [f"{name} on test against train loss"],
    }
    if task is RETRIEVAL:
        expected["quality_against_bytes"].append("Neighbor recall on test")
        titles = [f"nDCG@10 and neighbor recall on {split}" for split in ("dev", "test")]
        expected["ndcg_at_10_against_neighbor_recall"] = titles
    assert {each.name: [axes.get_title() for axes in each.figure.axes] for each in shown} == expected
    curve = np.linspace(0.1, 0.9, 4)
    left, right = run_plots.plot_loss_curves(1 - curve, 1 - curve, {task.selection: curve}, "mse").axes
    assert [line.get_label() for line in left.get_lines()] == ["train, noisy", "train, clean"]
    assert right.get_title() == f"{name} on dev"
    assert right.get_lines()[0].get_ydata().tolist() == curve.tolist()


@pytest.mark.parametrize(
    ("name", "task"),
    [("retrieval", RETRIEVAL), ("neighbors", NEIGHBORS), ("similarity", SIMILARITY), (None, SIMILARITY)],
)
def test_runs_are_read_by_the_scores_of_their_task(monkeypatch, name, task):
    tags = {"twinsqueeze.dataset": "x", "twinsqueeze.dataset_digest": "d"}
    if name:
        tags["twinsqueeze.task"] = name
    runs = [make_run(tags, task.curve_scores), make_run(tags, ["mae"])]
    runs += [make_run(tags | {"twinsqueeze.task": "of another version"}, task.curve_scores)] * 2
    monkeypatch.setattr(run_loader, "_search_runs", lambda _, kind: runs if kind == "train" else [])
    (run,), notes = run_loader.load_runs("0")
    assert run.task == task
    assert set(notes) == {
        "2 runs skipped, invalid recipe parameters: n, n.",
        "1 run skipped, dev metrics missing or not finite: n.",
    }
    expected = ("tanh", "mse") if task is SIMILARITY else ("", "")
    assert (run.comparison_key.label_transform, run.comparison_key.loss) == expected


def make_run(tags: dict[str, str], scores: Iterable[str]) -> SimpleNamespace:
    """A run as MLflow's client returns it."""
    info = SimpleNamespace(run_id="id", experiment_id="0", run_name="n", status="FINISHED", start_time=0)
    params = {name: str(value) for name, value in Recipe().model_dump().items()} | {"encoder_fingerprint": "f"}
    metrics = {f"dev/{score}": 0.5 for score in scores}
    return SimpleNamespace(info=info, data=SimpleNamespace(params=params, tags=tags, metrics=metrics))
