"""The commands ablation and compare, and what they leave in MLflow."""

import json
import re
from threading import Event

import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import fluent
from PIL import Image
from scipy import stats

from tests.helpers.results import without_times
from tests.helpers.shortcuts import DRAW_FIGURES
from twinsqueeze import experiment
from twinsqueeze.errors import InputError
from twinsqueeze.reporting import run_loader
from twinsqueeze.training import parallel


def recipe_options(run: Run, *names: str) -> list[str]:
    """The options of a training like a run: the fields of all runs of the store, and those that are named."""
    fields = (*names, "dim", "epochs", "dataset", "encoder", "device")
    return [text for name in fields for text in (f"--{name}", run.data.params[name])]


@pytest.fixture
def grid_command(workplace, tiny_options, tiny_encoder):
    """Writes a grid of small recipes into the workplace, and returns the command that trains it."""

    def write(**fields) -> list[str]:
        small = {"encoder": str(tiny_encoder), "device": "cpu", "dim": 8, "alpha": 0, "epochs": 3}
        (workplace.folder / "grid.yaml").write_text(json.dumps(small | fields))
        return ["ablation", "--grid", "grid.yaml", *tiny_options[:2]]

    return write


@pytest.fixture(scope="module")
def compared(trained_place, tmp_path_factory):
    """A copy of the trained store, compared once more with an output folder; the output of the command."""
    place = trained_place.copy_to(tmp_path_factory.mktemp("compared"))
    return place, place.run("compare", "--output", "out", **{DRAW_FIGURES: "1"}).stdout


def test_a_grid_is_a_parent_with_a_child_for_every_recipe(trained_place):
    (parent,), children = trained_place.runs("ablation"), trained_place.runs("train")
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    recipes = sorted((run.data.params["alpha"], run.data.params["seed"]) for run in children)
    assert recipes == [("0", "0"), ("0", "1"), ("0.75", "0"), ("0.75", "1")]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert "| mlp8" in parent.data.tags["mlflow.note.content"]
    assert parent.info.run_name == "grid"
    assert [item.path for item in trained_place.client.list_artifacts(parent.info.run_id)] == ["grid.yaml"]


def test_a_child_is_what_main_makes_of_the_same_recipe(trained_place, workplace):
    """Metrics to the last bit, weights to the last bit, the same artifacts."""
    (child,) = [run for run in trained_place.runs("train") if run.info.run_name == "mlp8-a0.75-s1-epochs3"]
    workplace.run("main", *recipe_options(child, "alpha", "seed"))
    (alone,) = workplace.runs()
    assert without_times(child.data.metrics) == without_times(alone.data.metrics)
    assert child.data.params == alone.data.params
    assert trained_place.checkpoint(child).read_bytes() == workplace.checkpoint(alone).read_bytes()
    artifacts, expected = (
        sorted(item.path for item in place.client.list_artifacts(run.info.run_id))
        for place, run in ((trained_place, child), (workplace, alone))
    )
    assert artifacts == expected
    history = trained_place.client.get_metric_history(child.info.run_id, "dev/spearman")
    assert sorted(point.step for point in history) == [1, 2, 3]


@pytest.mark.slow
def test_other_processes_draw_the_figures_of_a_large_grid(workplace, grid_command):
    workplace.run(*grid_command(seed=list(range(8))))
    for run in workplace.runs("train"):
        figures = list(workplace.download(run.info.run_id, "figures").iterdir())
        assert len(figures) == 4
        for figure in figures:  # this process does not draw
            assert figure.stat().st_size > 10_000
            assert Image.open(figure).mode == "RGBA"


@pytest.mark.parametrize("bad", [8, 12])
@pytest.mark.parametrize(
    ("min_pairs", "name"), [(0, "_train_in_worker"), (10**12, "train_replicas")], ids=["processes", "threads"]
)
def test_a_batch_that_fails_ends_the_others(workplace, grid_command, forked_workers, monkeypatch, min_pairs, name, bad):
    """Two batches train at once; one fails, and the other one would train for hours."""
    monkeypatch.setattr(experiment, "num_parallel_batches", lambda _: 2)
    monkeypatch.setattr(parallel, "MIN_PAIRS_FOR_POOL", min_pairs)
    train, begun, stopped = getattr(parallel, name), Event(), []

    def failing(*arguments, **options):
        (dim,) = {recipe.dim for recipe in arguments[-3]}
        if dim == bad:
            begun.wait()
            raise InputError("no room")
        begun.set()
        try:
            return train(*arguments, **options)
        except InputError:
            stopped.append(dim)
            raise

    monkeypatch.setattr(parallel, name, failing)
    done = workplace.command(*grid_command(dim=[8, 12], epochs=1_000_000))
    assert done.returncode
    assert "no room" in done.stderr
    assert {bad, *stopped} == {8, 12}
    assert [run.info.status for run in workplace.runs()] == ["FAILED"]


def test_replicas_that_diverge_are_failed_and_the_rest_goes_on(workplace, grid_command):
    done = workplace.run(*grid_command(lr=[1e-3, 1e30], seed=[0, 1]))
    assert done.stderr.count("diverged") == 2
    expected = {"0.001": "FINISHED", "1e+30": "FAILED"}
    assert {run.data.params["lr"]: run.info.status for run in workplace.runs("train")} == expected
    (parent,) = workplace.runs("ablation")
    assert parent.info.status == "FINISHED"
    assert "2 of 4 trainings diverged" in parent.data.tags["mlflow.note.content"]
    assert "2 of 4 runs did not finish and were skipped" in workplace.command("compare").stderr


def test_table_values_equal_the_metrics_of_the_runs(compared):
    place, _ = compared
    table = pd.read_csv(place.folder / "out" / "table.csv")
    trained = table[table["model"] == "mlp8"].set_index("alpha")
    runs = pd.DataFrame({"alpha": float(r.data.params["alpha"]), **r.data.metrics} for r in place.runs("train"))
    for name in ("dev/spearman", "search/test_neighbor_recall_int8"):
        np.testing.assert_allclose(trained[name], runs.groupby("alpha")[name].mean())
    dev = runs.groupby("alpha")["dev/spearman"]
    np.testing.assert_allclose(trained["dev/spearman_sd"], dev.std())
    assert trained.index[trained["best"]].tolist() == [dev.mean().idxmax()]
    expected = stats.ttest_ind(dev.get_group(0.75), dev.get_group(0), equal_var=False).confidence_interval()
    assert trained.loc[0.75, "dev/spearman_gain_low"] == pytest.approx(expected.low)
    names = table.loc[table["alpha"].isna(), "model"].tolist()
    assert {"uncompressed", "PCA to 8, whitened", "first 8, int8", "signs of 64, centered, float queries"} < set(names)
    baselines = json.loads(place.download(place.runs("train")[0].info.run_id, "baselines.json").read_text())
    assert [row[0] for row in baselines["data"]] == names


def test_a_comparison_logs_the_table_in_every_format(compared):
    place, output = compared
    run, folder = place.runs("comparison")[0], place.folder / "out"
    assert run.info.status == "FINISHED"
    files = {path.name for path in folder.iterdir()}
    frame = pd.read_csv(folder / "table.csv").query("best")
    best = {f"summary/best_{split}_spearman": frame[f"{split}/spearman"].item() for split in ("dev", "test")}
    assert run.data.metrics == pytest.approx(best)
    assert run.data.tags["mlflow.note.content"].startswith("Best on dev: mlp8 at alpha ")
    logged = place.client.list_artifacts(run.info.run_id, "comparison")
    assert {item.path for item in logged} == {f"comparison/{name}" for name in files}
    figures = {
        *("training_loss.png", "pair_losses.png", "predicted_against_label.png", "train_against_test.png"),
        *("quality_against_bytes.png", "spearman_against_alpha.png", "spearman_against_neighbor_recall.png"),
    }
    assert files == {"table.md", "table.csv", "table.tex", "report.html"} | figures
    for name in figures:
        assert np.asarray(Image.open(folder / name).convert("L")).std() > 5  # something is drawn
    page = (folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#table|http://127)', page)
    for child in place.runs("train"):
        assert f"/runs/{child.info.run_id}" in page
    assert "| mlp8" in run.data.tags["mlflow.note.content"]
    assert "Best on dev: mlp8 at alpha" in output
    assert max(len(line) for line in output.partition("Next:")[0].splitlines()) <= 80


def test_an_output_folder_is_not_overwritten_by_default(compared):
    place, _ = compared
    before = place.runs("comparison")
    done = place.command("compare", "--output", "out")
    assert done.returncode == 2
    assert "is not empty: pass another folder or --overwrite true" in done.stderr.splitlines()[-1]
    assert len(place.runs("comparison")) == len(before)


@pytest.mark.parametrize("command", ["compare --experiment nowhere", "export --model models:/nothing/1"])
def test_a_command_that_fails_makes_no_output_folder(workplace, command):
    assert workplace.command(*command.split(), "--output", "new/folder").returncode == 2
    assert not (workplace.folder / "new").exists()


def test_runs_of_main_and_train_share_rows(trained_place, tmp_path):
    """`train` then `evaluate` adds a run to the row of `main`; invalid runs are skipped and counted."""
    place = trained_place.copy_to(tmp_path)
    seeds = [run for run in place.runs("train") if run.data.params["alpha"] == "0.75"]
    place.run("train", "--seed", "2", *recipe_options(seeds[0], "alpha"))
    newest = place.runs()[0]
    assert "test/mse" not in newest.data.metrics
    place.run("evaluate", "--model", newest.info.run_id)
    scores = [run.data.metrics["test/spearman"] for run in (*seeds, place.runs()[0])]
    for params in ({}, newest.data.params):  # a run without parameters, and one without metrics
        tags = {name: value for name, value in newest.data.tags.items() if name.startswith("twinsqueeze")}
        strange = place.client.create_run("0", run_name="strange", tags=tags).info.run_id
        for name, value in params.items():
            place.client.log_param(strange, name, value)
        place.client.set_terminated(strange)
    done = place.run("compare", "--output", "out")
    assert "1 run skipped, invalid recipe parameters: strange" in done.stderr
    assert "1 run skipped, dev metrics missing or not finite: strange" in done.stderr
    row = pd.read_csv(place.folder / "out" / "table.csv").query("alpha == 0.75").squeeze()
    assert row["seeds"] == 3
    assert newest.info.run_id in row["runs"]
    assert row["test/spearman"] == pytest.approx(np.mean(scores))


def test_runs_are_loaded_page_by_page(trained_place, use_store, monkeypatch):
    use_store(trained_place.uri)
    whole, _ = run_loader.load_runs("0")
    monkeypatch.setattr(fluent, "NUM_RUNS_PER_PAGE_PANDAS", 2)
    paged, _ = run_loader.load_runs("0")
    assert len(whole) == 4
    assert [run.run_id for run in paged] == [run.run_id for run in whole]
