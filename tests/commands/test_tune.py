"""The command tune, and what it leaves in MLflow."""

import json
import signal
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.helpers.commands import Workplace
from tests.helpers.pairs import random_queries
from tests.helpers.shortcuts import DRAW_FIGURES

VECTORS = {"recipe": "vectors", "dim": 8, "subvector_dim": 4, "epochs": 3, "batch_size": 64, "num_candidates": 40}
LR = {"low": 1e-5, "high": 1e-1, "log": True}


def write_space(place: Workplace, search, **fields) -> list[str]:
    """Writes a search space and vectors into the workplace; returns the command that searches it."""
    (place.folder / "space.yaml").write_text(json.dumps(fields | {"search": search}))
    np.save(place.folder / "vectors.npy", random_queries(400, 24, seed=0).embeddings)
    return ["tune", "--space", "space.yaml", "--dataset", "vectors.npy", "--confirm", "2"]


def trials(place: Workplace) -> list:
    """The runs of trials by number."""
    return sorted(place.runs("trial"), key=lambda run: int(run.data.tags["twinsqueeze.trial"]))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, shared_cache, pairs_folder, tiny_encoder):
    """A study on scored pairs, whose start recipe has too few dimensions, and the output of the command."""
    place = Workplace(tmp_path_factory.mktemp("tuned"), shared_cache)
    command = write_space(place, {"lr": LR, "dim": [2, 8]}, dim=2, epochs=4, lr=1e-5, alpha=0)
    command[4] = str(pairs_folder)
    command += ["--encoder", str(tiny_encoder), "--trials", "8", "--device", "cpu"]
    return place, place.run(*command, **{DRAW_FIGURES: "1"}), command


def test_a_study_is_a_parent_with_a_child_for_every_trial(tuned):
    place, _, _ = tuned
    (parent,), children = place.runs("tuning"), trials(place)
    assert [run.info.run_name for run in children] == [f"trial-{i}" for i in range(8)]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["twinsqueeze.study"] for run in children} == {parent.data.tags["twinsqueeze.study"]}
    assert children[0].data.params["lr"] == "1e-05"  # the start recipe
    assert "test/spearman" not in {name for run in children for name in run.data.metrics}
    assert "digest" in "".join(children[0].data.params)
    for run in children:
        steps = [point.step for point in place.client.get_metric_history(run.info.run_id, "dev/spearman")]
        complete = run.data.tags["twinsqueeze.trial_state"] == "complete"
        assert steps == [1, 2, 3, 4] if complete else len(steps) < 4
    history = place.client.get_metric_history(parent.info.run_id, "tuning/best_value")
    values = [run.data.metrics["dev/spearman"] for run in children]
    assert history[-1].value == pytest.approx(max(values))
    figures = {path.name: path for path in place.download(parent.info.run_id, "figures").iterdir()}
    assert set(figures) == {"trials.png", "importances.png", "trade_off.png"}
    assert all(len(np.unique(np.asarray(Image.open(path).convert("L")))) > 20 for path in figures.values())


def test_the_best_and_the_start_recipe_are_confirmed_with_fresh_seeds(tuned):
    place, done, _ = tuned
    (parent,) = place.runs("tuning")
    scores: dict[str, list[float]] = {}
    for run in place.runs("train"):
        assert run.data.params["seed"] in {"1", "2"}
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert "test/spearman" in run.data.metrics
        scores.setdefault(run.data.params["lr"], []).append(run.data.metrics["dev/spearman"])
    start = scores.pop("1e-05")
    (best,) = scores.values()
    assert len(best) == len(start) == 2
    gain, low = parent.data.metrics["tuning/gain"], parent.data.metrics["tuning/gain_low"]
    assert gain == pytest.approx(np.mean(best) - np.mean(start))
    assert low < gain
    verdict = f"The tuned recipe {'beats' if low > 0 else 'does not beat'} the start recipe"
    text = " ".join(done.stdout.split())
    assert verdict in text
    assert verdict in parent.data.tags["mlflow.note.content"]
    assert f"{np.mean(start):.4f}" in text


def test_the_best_recipe_is_a_grid_and_a_printed_command_and_is_registered(tuned, tmp_path):
    place, done, _ = tuned
    copy = place.copy_to(tmp_path)
    file = place.download(place.runs("tuning")[0].info.run_id, "recipe.yaml")
    assert yaml.safe_load(file.read_text())["seed"] == [1, 2]
    assert "2 of 2 recipes are in the experiment already" in copy.run("ablation", "--grid", str(file)).stderr

    command = next(line for line in done.stdout.split("\n") if "train it again" in line)
    copy.run(*command.partition("twinsqueeze ")[2].split())
    again = copy.runs("train")[0]
    (same,) = [run for run in place.runs("train") if run.info.run_name == again.info.run_name]
    assert again.data.metrics["dev/spearman"] == same.data.metrics["dev/spearman"]

    copy.run("register")
    version = copy.client.get_model_version_by_alias("twinsqueeze", "champion")
    assert copy.client.get_run(version.tags["twinsqueeze.trained_run"]).data.tags["twinsqueeze.kind"] == "train"


def test_the_same_command_trains_nothing_again(tuned, tmp_path):
    place, done, command = tuned
    copy = place.copy_to(tmp_path)
    for name in ("state", "space.yaml"):
        (tmp_path / name).symlink_to(place.folder / name)
    again = copy.run(*command)
    assert "the study has 8 finished trials" in again.stderr
    assert len(copy.runs("trial")) == 8
    assert again.stdout.partition("Next:")[0] == done.stdout.partition("Next:")[0]
    newest = copy.runs("tuning")[0].info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in trials(copy)} == {newest}


def test_a_study_that_was_killed_resumes_and_finds_what_an_uninterrupted_one_finds(
    workplace, tmp_path_factory, shared_cache
):
    """It is stopped by Ctrl-C once, and killed the next time."""
    search = {"lr": LR, "num_neighbors": {"low": 0, "high": 5}}
    command = [*write_space(workplace, search, **VECTORS), "--trials", "20"]
    assert workplace.runs() == []  # makes the store
    resumes = "finished trials, which are not trained again"
    for number, code, status in ((signal.SIGINT, 130, "KILLED"), (signal.SIGKILL, -signal.SIGKILL, "RUNNING")):
        before = len(workplace.runs("trial"))
        with workplace.start(*command) as process:
            process.wait_for(lambda least=before + 2: len(workplace.runs("trial")) >= least)
            process.send_signal(number)
            _, errors = process.finish(code)
        assert "Traceback" not in errors
        assert (resumes in errors) == (before > 0)
        assert workplace.runs("tuning")[0].info.status == status
    assert resumes in workplace.run(*command).stderr
    newest, killed, interrupted = workplace.runs("tuning")
    assert [run.info.status for run in (newest, killed, interrupted)] == ["FINISHED", "KILLED", "KILLED"]
    assert newest.data.tags["twinsqueeze.resumes_run"] == killed.info.run_id
    found = [run for run in trials(workplace) if run.data.tags["mlflow.parentRunId"] == newest.info.run_id]
    assert [run.info.run_name for run in found] == [f"trial-{i}" for i in range(20)]

    other = Workplace(tmp_path_factory.mktemp("other"), shared_cache)
    write_space(other, search, **VECTORS)
    other.run(*command)
    values, expected = ([run.data.metrics["dev/neighbor_recall"] for run in runs] for runs in (found, trials(other)))
    assert values == expected


def test_a_study_of_vectors_has_one_score_and_says_if_its_start_is_best(workplace):
    """By `mlflow run -e tune`."""
    command = write_space(workplace, {"lr": [0.004, 1e-9]}, **VECTORS | {"init": "random", "epochs": 20})
    parameters = dict(zip((name[2:] for name in command[1::2]), command[2::2], strict=True))
    defaults = {"trials": "50", "seeds": "1", "seed": "0", "encoder": "all-MiniLM-L6-v2", "device": "cpu"}
    assert workplace.runs() == []  # makes the store
    done = workplace.project_run("0", "tune", **parameters, **defaults)
    assert done.returncode == 0, done.stderr
    assert "No trial is better on dev than the start recipe, neighbor recall 0." in " ".join(done.stdout.split())
    (parent,) = workplace.runs("tuning")
    assert (parent.info.status, parent.data.params["trials"]) == ("FINISHED", "50")
    assert [path.name for path in workplace.download(parent.info.run_id, "figures").iterdir()] == ["trials.png"]
    assert len(workplace.runs("train")) == 2
    assert len(workplace.runs("trial")) == 2  # all combinations, not 50


def test_a_study_whose_trials_all_fail_says_why(workplace):
    command = write_space(workplace, {"neighbor_temperature": [1e-40, 1e-41]}, **VECTORS)
    done = workplace.command(*command)
    assert done.returncode == 2
    assert "every trial failed; the first error: the training diverged" in done.stderr
    assert [run.info.status for run in trials(workplace)] == ["FAILED", "FAILED"]
    assert [run.info.status for run in workplace.runs("tuning")] == ["FAILED"]


def test_without_optuna_the_command_says_what_to_install(workplace, monkeypatch):
    command = write_space(workplace, {"lr": LR}, **VECTORS)
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("twinsqueeze.commands.tune", "twinsqueeze.commands.study_recording", "twinsqueeze.tuning.study"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    done = workplace.command(*command)
    assert done.returncode == 2
    assert done.stderr == 'twinsqueeze: tune needs optuna: pip install "optuna>=5,<6"\n'
