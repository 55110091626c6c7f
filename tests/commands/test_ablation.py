"""ablation and compare as processes, and what they leave in MLflow."""

import csv
import json
import re
import signal
import time
from threading import Event

import mlflow
import numpy as np
import pytest
from mlflow.tracking import fluent
from PIL import Image
from scipy import stats

from tests.helpers.commands import Workplace
from twinsqueeze import experiment
from twinsqueeze.errors import InputError
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.reporting import run_loader
from twinsqueeze.training import parallel

GRID = "alpha: [0, 0.75, 3]\nseed: [0, 1]\ndim: 8\nepochs: 4\nlr: 1e-3\ndevice: cpu\n"

# Untrained ways to fewer numbers.
SMALLER = ("first", "random projection", "PCA")


def ablate(place: Workplace, folder, *arguments: str, text: str = GRID):
    (place.folder / "grid.yaml").write_text(text)
    done = place.command("ablation", "--grid", "grid.yaml", "--dataset", str(folder), *arguments)
    assert done.returncode == 0, done.stderr
    return done


def of_kind(place: Workplace, kind: str) -> list[mlflow.entities.Run]:
    return [run for run in place.runs() if run.data.tags["twinsqueeze.kind"] == kind]


def weights(place: Workplace, run: mlflow.entities.Run):
    (file,) = place.model(run).rglob("*.safetensors")
    return read_checkpoint(file, "x")[0].state_dict()


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("grid"), shared_cache)


@pytest.fixture(scope="module")
def grid_output(place, pairs_folder):
    return ablate(place, pairs_folder)


@pytest.fixture(scope="module")
def compared(place, grid_output):
    done = place.command("compare", "--output", "out")
    assert done.returncode == 0, done.stderr
    return done


def test_a_grid_is_a_parent_with_a_child_for_every_recipe(place, grid_output):
    (parent,), children = of_kind(place, "ablation"), of_kind(place, "train")
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {(run.data.params["alpha"], run.data.params["seed"]) for run in children} == {
        (alpha, seed) for alpha in ("0.0", "0.75", "3.0") for seed in ("0", "1")
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert "| mlp8" in parent.data.tags["mlflow.note.content"]
    assert parent.info.run_name == "grid"
    assert [item.path for item in place.client.list_artifacts(parent.info.run_id)] == ["grid.yaml"]


def test_a_child_is_what_main_makes_of_the_same_recipe(place, grid_output, pairs_folder, shared_cache, tmp_path):
    """Metrics to the last bit, weights to the last bit, the same artifacts."""
    alone = Workplace(tmp_path, shared_cache)
    options = ["--alpha", "0.75", "--seed", "1", "--dim", "8", "--epochs", "4", "--lr", "1e-3", "--device", "cpu"]
    done = alone.command("main", "--dataset", str(pairs_folder), *options)
    assert done.returncode == 0, done.stderr
    (ours,) = alone.runs()
    (child,) = [run for run in of_kind(place, "train") if run.info.run_name == "mlp8-alpha0.75-seed1"]
    assert child.data.metrics == ours.data.metrics
    assert child.data.params == ours.data.params
    theirs = weights(alone, ours)
    for name, tensor in weights(place, child).items():
        np.testing.assert_array_equal(tensor, theirs[name])
    paths = [
        sorted(item.path for item in p.client.list_artifacts(run.info.run_id))
        for p, run in ((place, child), (alone, ours))
    ]
    assert paths[0] == paths[1]
    steps = [point.step for point in place.client.get_metric_history(child.info.run_id, "dev/spearman")]
    assert sorted(steps) == [1, 2, 3, 4]


def test_a_grid_that_was_killed_goes_on(workplace, pairs_folder):
    """The second of two shapes is being trained when the kill comes: the first is not trained again."""
    text = GRID.replace("epochs: 4", "epochs: [2, 4000]").replace("[0, 0.75, 3]", "[0, 0.75]")
    (workplace.folder / "grid.yaml").write_text(text)
    assert workplace.runs() == []  # makes the store, which two processes must not do at once
    process = workplace.start("ablation", "--grid", "grid.yaml", "--dataset", str(pairs_folder))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.3)
        if sum(run.info.status == "FINISHED" for run in workplace.runs()) == 4:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    process.stderr.close()
    assert sorted(run.info.status for run in workplace.runs()) == ["FINISHED"] * 4 + ["RUNNING"]

    shorter = text.replace("[2, 4000]", "[2, 3]")
    done = ablate(workplace, pairs_folder, text=shorter)
    assert "4 of 8 recipes are in the experiment already" in done.stderr
    assert len(of_kind(workplace, "train")) == 8
    parent, dead = of_kind(workplace, "ablation")
    assert (parent.info.status, dead.info.status) == ("FINISHED", "KILLED")
    assert "its process" in dead.data.tags["mlflow.note.content"]
    done = ablate(workplace, pairs_folder, "--force", "true", text=shorter)
    assert "already" not in done.stderr
    assert len(of_kind(workplace, "train")) == 16
    for run in of_kind(workplace, "train")[:8]:  # which is a grid of so many that other processes draw its figures
        figures = workplace.client.list_artifacts(run.info.run_id, "figures")
        assert len(figures) == 4
        assert all(figure.file_size > 10_000 for figure in figures)


@pytest.mark.parametrize(("bad", "other"), [(8, 12), (12, 8)])
@pytest.mark.parametrize(
    ("min_pairs", "name"), [(0, "_train_in_worker"), (10**12, "train_replicas")], ids=["processes", "threads"]
)
def test_a_batch_that_fails_ends_the_others(
    run_here, pairs_folder, workplace, monkeypatch, min_pairs, name, bad, other
):
    """Two batches train at once; one fails, and the other one would train for hours."""
    monkeypatch.setattr(experiment, "num_parallel_batches", lambda _: 2)
    monkeypatch.setattr(parallel, "MIN_PAIRS_FOR_POOL", min_pairs)
    train, begun, stopped = getattr(parallel, name), Event(), []

    def failing(*arguments, **options):
        (dim,) = {recipe.dim for recipe in arguments[-3]}
        if dim == bad:
            assert begun.wait(60)
            raise InputError("no room")
        begun.set()
        try:
            return train(*arguments, **options)
        except InputError:
            stopped.append(dim)
            raise

    monkeypatch.setattr(parallel, name, failing)
    (workplace.folder / "grid.yaml").write_text("dim: [8, 12]\nalpha: 0\nepochs: 1000000\ndevice: cpu\n")
    code, _, err = run_here("ablation", "--grid", "grid.yaml", "--dataset", str(pairs_folder))
    assert code
    assert "no room" in err
    assert stopped == [other]
    assert [run.info.status for run in workplace.runs()] == ["FAILED"]


def test_table_values_equal_the_metrics_of_the_runs(place, compared):
    children = of_kind(place, "train")
    with (place.folder / "out" / "table.csv").open() as file:
        rows = {(row["model"], row["alpha"]): row for row in csv.DictReader(file)}
    values = {
        alpha: [r.data.metrics["dev/spearman"] for r in children if float(r.data.params["alpha"]) == alpha]
        for alpha in (0, 0.75, 3)
    }
    for alpha, sample in values.items():
        row = rows["mlp8", str(float(alpha))]
        assert float(row["dev/spearman"]) == pytest.approx(np.mean(sample))
        assert float(row["dev/spearman_sd"]) == pytest.approx(np.std(sample, ddof=1))
        assert row["best"] == str(np.mean(sample) == max(map(np.mean, values.values())))
    expected = stats.ttest_ind(values[3], values[0], equal_var=False).confidence_interval()
    assert float(rows["mlp8", "3.0"]["dev/spearman_gain_low"]) == pytest.approx(expected.low)
    assert [name for name, alpha in rows if not alpha] == [
        "uncompressed",
        "first 8",
        "random projection to 8",
        "PCA to 8",
        "PCA to 8, whitened",
        "signs of 384, centered",
        *(f"{name} to 8, {kept}".replace("first to", "first") for kept in ("int8", "signs") for name in SMALLER),
        "signs of 384, centered, float queries",
        "uncompressed, int8",
    ]


def test_a_comparison_logs_the_table_in_every_format(place, compared):
    (run,) = of_kind(place, "comparison")
    assert run.info.status == "FINISHED"
    files = {
        item.path.removeprefix("comparison/") for item in place.client.list_artifacts(run.info.run_id, "comparison")
    }
    assert files == {path.name for path in (place.folder / "out").iterdir()}
    assert files == {
        "table.md",
        "table.csv",
        "table.tex",
        "report.html",
        "training_loss.png",
        "spearman_against_alpha.png",
        "predicted_against_label.png",
        "pair_losses.png",
        "train_against_test.png",
        "quality_against_bytes.png",
        "spearman_against_neighbor_recall.png",
    }
    for path in (place.folder / "out").glob("*.png"):
        assert np.asarray(Image.open(path).convert("L")).std() > 5  # something is drawn
    page = (place.folder / "out" / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|http://127)', page)
    for child in of_kind(place, "train"):
        assert f"/runs/{child.info.run_id}" in page
    assert "| mlp8" in run.data.tags["mlflow.note.content"]
    search_tables = page[page.index("Search quality") :]
    with (place.folder / "out" / "table.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["best"] == "True"]
    seeds = [r for r in of_kind(place, "train") if float(r.data.params["alpha"]) == float(row["alpha"])]
    recalls = [run.data.metrics["test/neighbor_recall_int8"] for run in seeds]
    assert float(row["test/neighbor_recall_int8"]) == pytest.approx(np.mean(recalls))
    cells = f"<td>mlp8, alpha {float(row['alpha']):g}, int8</td><td>8</td>"
    assert (
        f"<td>{np.mean(recalls):.2f} ± {np.std(recalls, ddof=1):.2f}</td>"
        in search_tables.partition(cells)[2].partition("</tr>")[0]
    )
    assert "test: search quality" in compared.stdout


def test_an_output_folder_is_not_overwritten_by_default(place, compared):
    done = place.command("compare", "--output", "out")
    assert done.returncode == 2
    assert "is not empty: pass another folder or --overwrite true" in done.stderr.splitlines()[-1]
    assert len(of_kind(place, "comparison")) == 1


def test_runs_of_main_and_train_share_rows(place, compared, pairs_folder):
    """`train` then `evaluate` adds a run to the row of `main`; invalid runs are skipped and counted."""
    options = ["--dim", "8", "--epochs", "4", "--lr", "1e-3", "--device", "cpu", "--dataset", str(pairs_folder)]
    assert place.command("train", "--alpha", "3", "--seed", "2", *options).returncode == 0
    newest = place.runs()[0]
    assert "test/mse" not in newest.data.metrics
    assert place.command("evaluate", "--model", newest.info.run_id).returncode == 0
    test = place.runs()[0].data.metrics["test/spearman"]
    for params in ({}, newest.data.params):  # a run without parameters, and one without metrics
        tags = {k: v for k, v in newest.data.tags.items() if k.startswith("twinsqueeze")}
        strange = place.client.create_run("0", run_name="strange", tags=tags).info.run_id
        for name, value in params.items():
            place.client.log_param(strange, name, value)
        place.client.set_terminated(strange)
    done = place.command("compare", "--output", "again")
    assert done.returncode == 0, done.stderr
    assert "1 run skipped, invalid recipe parameters: strange" in done.stderr
    assert "1 run skipped, dev metrics missing or not finite: strange" in done.stderr
    with (place.folder / "again" / "table.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["alpha"] == "3.0"]
    assert row["seeds"] == "3"
    assert newest.info.run_id in row["runs"]
    seeds = [
        r.data.metrics["test/spearman"]
        for r in of_kind(place, "train")
        if r.data.params.get("alpha") == "3.0" and "test/spearman" in r.data.metrics
    ]
    assert float(row["test/spearman"]) == pytest.approx(np.mean([*seeds, test]))


def test_runs_are_loaded_page_by_page(place, compared, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    whole, _ = run_loader.load_runs("0")
    monkeypatch.setattr(fluent, "NUM_RUNS_PER_PAGE_PANDAS", 2)
    paged, _ = run_loader.load_runs("0")
    assert len(whole) >= 6
    assert [run.run_id for run in paged] == [run.run_id for run in whole]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare"], "no finished training run in the experiment"),
        (["compare", "--experiment", "nowhere"], "experiment 'nowhere' not found; existing experiments: 'Default'"),
        (["ablation", "--grid", "absent.yaml"], "grid 'absent.yaml' not found"),
        (["ablation"], "Missing option '--grid'"),
    ],
)
def test_what_cannot_be_done_is_one_line(workplace, arguments, message):
    done = workplace.command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (workplace.folder / "mlflow.db").exists() or workplace.runs() == []


def test_replicas_that_diverge_are_failed_and_the_rest_goes_on(workplace, pairs_folder):
    done = ablate(workplace, pairs_folder, text="lr: [1e-3, 1e30]\nseed: [0, 1]\nepochs: 3\ndim: 8\nalpha: 0\n")
    assert done.stderr.count("diverged") == 2
    statuses = {run.data.params["lr"]: run.info.status for run in of_kind(workplace, "train")}
    assert statuses == {"0.001": "FINISHED", "1e+30": "FAILED"}
    (parent,) = of_kind(workplace, "ablation")
    assert parent.info.status == "FINISHED"
    assert "2 of 4 trainings diverged" in parent.data.tags["mlflow.note.content"]
    done = workplace.command("compare")
    assert "2 of 4 runs did not finish and were skipped" in done.stderr
    assert json.dumps(done.stdout)
