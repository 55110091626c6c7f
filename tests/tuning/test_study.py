"""Studies without trainings: what is proposed, stored and pruned."""

from math import log10

import optuna
import pytest

from tests.helpers.refusals import refusal
from twinsqueeze.task import SIMILARITY
from twinsqueeze.tuning.space import load_space
from twinsqueeze.tuning.study import StudyOptions, TrialResult, open_study

TRIALS = 13
SEARCH = "search: {lr: {low: 1.0e-4, high: 1.0e-1, log: true}, epochs: {low: 1, high: 9}, loss: [mse, pearson]}"


@pytest.fixture
def open_(tmp_path, monkeypatch):
    """Opens a study in a folder of the test's own."""
    monkeypatch.setenv("TWINSQUEEZE_STATE", str(tmp_path / "state of 50%?#"))
    (tmp_path / "space.yaml").write_text(SEARCH)
    space = load_space(str(tmp_path / "space.yaml"), SIMILARITY)

    def open_named(name="study", seed=0, round_size=2, *, resume=True):
        return open_study(name, space, StudyOptions(seed, round_size), resume=resume)

    return open_named


def objective(params) -> float:
    """Best at lr 0.01 and many epochs."""
    return -abs(log10(params["lr"]) + 2) + params["epochs"] / 100


def advance(study, until: int) -> list[dict]:
    """Adds trials until there are so many, even in the middle of a round; returns the parameters of all trials."""
    while len(study.trials) < until:
        proposals, _ = study.next_round(TRIALS)
        for number, params in proposals.items():
            if number < until:
                study.add(TrialResult(number, params, "complete", objective(params), {100: objective(params)}))
    return [trial.params for trial in study.trials]


def test_a_study_starts_with_its_recipe_and_comes_near_the_optimum_even_if_it_is_interrupted(open_):
    with open_() as study:
        expected = advance(study, TRIALS)
        assert (expected[0]["lr"], expected[0]["loss"]) == (2e-4, "mse")  # its 200 epochs are out of range
        assert study.next_round(TRIALS)[0] == {}
        assert study.best.value == max(map(objective, expected)) > -0.3
        importances = study.importances()
        assert max(importances, key=importances.get) == "lr"
    for stop in (1, 4, 7, 8, TRIALS):  # within a round and after it
        with open_("other") as study:
            assert advance(study, stop) == expected[:stop]
    with open_("seed", seed=1) as study:
        assert advance(study, 4) != expected[:4]


def test_two_processes_cannot_run_one_study(open_):
    with open_():
        assert "another process runs this study" in refusal(open_().__enter__)


def test_a_study_that_starts_again_has_no_trials_even_if_its_file_is_damaged(open_, tmp_path):
    with open_() as study:
        advance(study, 2)
    with open_(resume=False) as study:
        assert study.trials == []
    (file,) = tmp_path.rglob("study.db")
    file.write_bytes(b"no database" * 1000)
    assert refusal(open_().__enter__).startswith(f"study {file} can't be opened (")
    with open_(resume=False) as study:
        assert study.trials == []


def test_equal_values_depend_on_no_parameter(open_):
    with open_() as study:
        for number, params in study.next_round(2)[0].items():
            study.add(TrialResult(number, params, "complete", 0.5, {100: 0.5}))
        assert study.importances() == {"lr": 0, "epochs": 0, "loss": 0}


def test_results_are_stored_as_they_are(open_):
    results = [
        TrialResult(0, {}, "complete", 0.5, {50: 0.4, 100: 0.5}, {"spearman": 0.5}, recipe_digest="a"),
        TrialResult(1, {}, "pruned", 0.4, {50: 0.4}, recipe_digest="b"),
        TrialResult(2, {}, "failed", float("nan"), {}, reason="no room"),
    ]
    with open_() as study:
        while len(study.trials) < 3:
            for number, params in study.next_round(3)[0].items():
                results[number].params.update(params)
                study.add(results[number])
    with open_() as study:
        assert repr(study.trials) == repr(results)
        assert study.best.number == 0


def test_a_trial_is_pruned_where_optuna_prunes_it(open_):
    """Against the pruner in a study of Optuna's own."""
    curves = [{10 * i: quality * i for i in range(1, 11)} for quality in (3, 5, 1, 4, 2, 6)]
    theirs = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(5, 25))
    with open_() as study:
        while len(study.trials) < 6:
            for number, params in study.next_round(6)[0].items():
                study.add(TrialResult(number, params, "complete", curves[number][100], curves[number]))
        _, pruner = study.next_round(8)
    for curve in curves:
        theirs.add_trial(optuna.trial.create_trial(value=curve[100], intermediate_values=curve))
    for quality, is_behind in ((1, True), (3.4, True), (3.6, False)):
        trial, seen = theirs.ask(), {}
        for i in range(1, 10):
            trial.report(quality * i, 10 * i)
            seen[10 * i] = quality * i
            assert pruner.should_prune(seen) == trial.should_prune() == (is_behind and i >= 3)
