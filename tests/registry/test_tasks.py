"""Selection, promotion and model cards of runs on data without human scores."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tests.helpers.refusals import refusal
from tests.helpers.trained_runs import run_of_task, trained
from twinsqueeze.model.checkpoint import CheckpointMetadata, serialize_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry import model_loader, model_registry, promotion
from twinsqueeze.registry.model_card import render_model_card
from twinsqueeze.registry.model_registry import Version
from twinsqueeze.reporting import run_loader
from twinsqueeze.reporting.ablation_table import build_tables
from twinsqueeze.task import NEIGHBORS, RETRIEVAL
from twinsqueeze.tracking import model_files

VECTORS = Recipe(encoder="none", dataset="vectors.npy", architecture="linear")
BETTER = run_of_task(RETRIEVAL, 0.5, seed=0)
RUNS = [BETTER, run_of_task(RETRIEVAL, 0.4, seed=1), run_of_task(RETRIEVAL, 0.3, alpha=0)]


@pytest.fixture
def select(monkeypatch):
    """Selects the best of some runs by a metric."""

    def select(runs, metric="auto"):
        monkeypatch.setattr(run_loader, "load_experiment", lambda _: ("0", runs, []))
        monkeypatch.setattr(run_loader, "load_tables", lambda found: (build_tables(found, {}), []))
        client = SimpleNamespace(get_run=lambda _: SimpleNamespace(inputs=None))
        monkeypatch.setattr(mlflow, "MlflowClient", lambda: client)
        return promotion.select_best_run("current", metric, "any")

    return select


def test_the_default_metric_is_that_of_the_task(select):
    selection = select(RUNS)
    assert (selection.metric, selection.run) == ("dev/ndcg_at_10", BETTER)
    assert select([run_of_task(NEIGHBORS, 0.5)]).metric == "dev/neighbor_recall"
    assert select([trained(0.5)]).metric == "dev/spearman"
    assert select(RUNS, "dev/neighbor_recall").metric == "dev/neighbor_recall"


@pytest.mark.parametrize(
    ("runs", "metric", "message"),
    [
        (RUNS, "dev/spearman", "metric must be one of auto, dev/ndcg_at_10, dev/neighbor_recall for retrieval runs"),
        ([trained(0.5)], "dev/ndcg_at_10", "metric must be one of auto, dev/mse, dev/mae, dev/pearson, dev/spearman"),
        ([*RUNS, trained(0.5)], "auto", "different data (data (retrieval), data (similarity))"),
    ],
)
def test_metrics_and_data_that_do_not_fit_are_refused(select, runs, metric, message):
    assert message in refusal(select, runs, metric)


@pytest.mark.parametrize(("gain", "outcome"), [(0.02, "better"), (-0.02, "worse"), (0.0, "not significant")])
def test_the_champion_is_compared_query_by_query(select, monkeypatch, gain, outcome):
    generator = np.random.default_rng(0)
    champion_scores = generator.beta(0.5, 1, 300)
    scores = champion_scores + generator.normal(gain, 0.05, 300)
    tables = {BETTER.run_id: scores, "champion": champion_scores}

    def read_predictions(run_id: str) -> pd.DataFrame:
        dev = pd.DataFrame({"split": "dev", "query": np.arange(300), "ndcg_at_10": tables[run_id]})
        return pd.concat([dev, dev.assign(split="test", ndcg_at_10=0)])

    monkeypatch.setattr(run_loader, "read_predictions", read_predictions)
    selection = replace(select(RUNS), dev_digest="dev")
    tags = {model_registry.DEV_DIGEST: "dev", "twinsqueeze.trained_run": "champion"}
    champion = Version(1, (), tags)
    decision = promotion.compare_with_champion(selection, champion, lambda _: pytest.fail("it is evaluated again"))
    expected = stats.bootstrap((scores - champion_scores,), np.mean, method="percentile", rng=generator)
    found = decision.metrics["gate/low"], decision.metrics["gate/high"]
    assert found == pytest.approx(expected.confidence_interval, abs=5e-4)
    assert decision.metrics["gate/difference"] == pytest.approx(np.mean(scores - champion_scores))
    assert f"(paired bootstrap over queries): {outcome}" in decision.reason
    assert decision.promoted == (outcome == "better")
    assert (
        f"nDCG@10 on dev: {scores.mean():.4f}; champion (version 1): {champion_scores.mean():.4f}; " in decision.reason
    )

    for task, recorded in ((RETRIEVAL, None), (RETRIEVAL, "champion"), (NEIGHBORS, None)):
        monkeypatch.setattr(mlflow, "MlflowClient", lambda task=task: runs_of(task))
        monkeypatch.setattr(run_loader, "find_evaluation", lambda *_, found=recorded: found)
        champion = Version(1, (), tags | {model_registry.DEV_DIGEST: "other"})
        evaluate = Mock(return_value=read_predictions("champion").iloc[:300])
        other = promotion.compare_with_champion(selection, champion, evaluate)
        assert evaluate.call_count == (task == RETRIEVAL and recorded is None)
        if task == RETRIEVAL:
            assert other == decision
        else:
            reason = "was selected on other dev queries, and no comparison is possible: it was trained on texts or"
            assert reason in other.reason


def runs_of(task) -> SimpleNamespace:
    """A client whose runs have all been trained on data of one kind."""
    data = SimpleNamespace(params={"encoder_fingerprint": "none"}, tags={"twinsqueeze.task": task.name})
    return SimpleNamespace(get_run=lambda run_id: SimpleNamespace(data=data, info=SimpleNamespace(run_id=run_id)))


def test_a_model_card_has_the_scores_of_its_task(select):
    selection = select(RUNS)
    intervals = {"uncertainty/dev_ndcg_at_10_low": 0.4, "uncertainty/dev_ndcg_at_10_high": 0.6}
    selection = replace(selection, run=replace(selection.run, metrics=selection.run.metrics | intervals))
    card = render_model_card(metadata(Recipe(), "retrieval"), 384, None, run_id="r", selection=selection)
    assert "|  | bytes | dev nDCG@10 | dev neighbor recall | test nDCG@10 | test neighbor recall |" in card
    assert "| this model, seed 0 | 128 | 0.5000 | 0.50 | 0.5000 | 0.50 |" in card
    assert "| binary | 4 | 0.4500 | 0.45 | 0.4500 | 0.45 |" in card
    assert "95% bootstrap intervals over queries:\ndev nDCG@10 0.4000 to 0.6000." in card
    assert "Queries with the passages that answer them, x, digest" in card
    assert "pairs" not in card
    assert "The encoder all-MiniLM-L6-v2 maps a text to 384 floats" in card


def metadata(recipe: Recipe, task: str) -> CheckpointMetadata:
    return CheckpointMetadata(
        recipe=recipe, dataset="x", dataset_digest="d", score_max=None, encoder_fingerprint="f", version="0", task=task
    )


def test_a_model_of_vectors_is_its_compressor(tmp_path):
    compressor = CompressorNetwork.from_state_dict(
        {"0.weight": torch.randn(4, 16), "0.bias": torch.zeros(4)}, "float32"
    )
    described = metadata(VECTORS, "neighbors")
    card = render_model_card(described, 16, None)
    assert "Input: vectors of 16 floats (64 bytes); encoder unknown." in card
    assert "\nVectors x, digest of train and dev d." in card
    folder = tmp_path / "model"
    example = np.eye(2, 16, dtype=np.float32)
    model_files.save_compressor(folder, serialize_checkpoint(compressor, described), example, card, "a" * 32)
    vectors = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    expected = compressor.compress(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(mlflow.pyfunc.load_model(str(folder)).predict(vectors), expected, atol=1e-6)
    resolved = model_loader.resolve_model(str(folder))
    assert resolved.run_id == "a" * 32
    assert resolved.model_card.read_text() == card
    message = refusal(model_loader.load_sentence_transformer_for, "m", resolved)
    assert "was trained on vectors and has no encoder: export accepts --format faiss or safetensors" in message
