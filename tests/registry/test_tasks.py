"""Selection, promotion and model cards of runs on data without human scores."""

from dataclasses import replace
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tests.helpers.models import make_metadata
from tests.helpers.refusals import refusal
from tests.helpers.trained_runs import run_of_task, trained
from twinsqueeze.model.checkpoint import serialize_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry import model_loader, model_registry, promotion
from twinsqueeze.registry.model_card import render_model_card
from twinsqueeze.registry.model_registry import Version
from twinsqueeze.reporting import run_loader
from twinsqueeze.reporting.ablation_table import build_tables
from twinsqueeze.task import NEIGHBORS, RETRIEVAL
from twinsqueeze.tracking import model_files

BETTER = run_of_task(RETRIEVAL, 0.5, seed=0)
RUNS = [BETTER, run_of_task(RETRIEVAL, 0.4, seed=1), run_of_task(RETRIEVAL, 0.3, alpha=0)]


@pytest.fixture
def select(monkeypatch):
    """Selects the best of some runs by a metric."""

    def select(runs, metric="auto", dataset="any"):
        monkeypatch.setattr(run_loader, "load_experiment", lambda _: ("0", runs, []))
        monkeypatch.setattr(run_loader, "load_tables", lambda found: (build_tables(found, {}), []))
        client = SimpleNamespace(get_run=lambda _: SimpleNamespace(inputs=None))
        monkeypatch.setattr(mlflow, "MlflowClient", lambda: client)
        return promotion.select_best_run("current", metric, dataset)

    return select


def test_the_default_metric_is_that_of_the_task(select):
    selection = select(RUNS)
    assert (selection.metric, selection.run) == ("dev/ndcg_at_10", BETTER)
    assert select([run_of_task(NEIGHBORS, 0.5)]).metric == "dev/neighbor_recall"
    assert select([trained(0.5)]).metric == "dev/spearman"
    assert select(RUNS, "dev/neighbor_recall").metric == "dev/neighbor_recall"


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (RUNS, ["dev/spearman"], "metric must be one of auto, dev/ndcg_at_10, dev/neighbor_recall for retrieval runs"),
        ([trained(0.5)], ["dev/ndcg_at_10"], "metric must be one of auto, dev/mse, dev/mae, dev/pearson, dev/spearman"),
        ([*RUNS, trained(0.5)], [], "different data (data (retrieval), data (similarity))"),
        (RUNS, ["auto", "x"], "no finished run on dataset 'x': the experiment has runs on data"),
    ],
)
def test_metrics_and_data_that_do_not_fit_are_refused(select, runs, options, message):
    assert message in refusal(select, runs, *options)


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
    champion = Version(1, (), {model_registry.DEV_DIGEST: "dev", "twinsqueeze.trained_run": "champion"})
    selection = replace(select(RUNS), dev_digest="dev")
    decision = promotion.compare_with_champion(selection, champion, lambda _: pytest.fail("it is evaluated again"))
    expected = stats.bootstrap((scores - champion_scores,), np.mean, method="percentile", rng=generator)
    found = decision.metrics["gate/low"], decision.metrics["gate/high"]
    assert found == pytest.approx(expected.confidence_interval, abs=5e-4)
    assert decision.metrics["gate/difference"] == pytest.approx(np.mean(scores - champion_scores))
    assert f"(paired bootstrap over queries): {outcome}" in decision.reason
    assert decision.promoted == (outcome == "better")
    means = f"{scores.mean():.4f}; champion (version 1): {champion_scores.mean():.4f}; "
    assert f"nDCG@10 on dev: {means}" in decision.reason


def test_a_model_card_has_the_scores_of_its_task(select):
    selection = select(RUNS)
    intervals = {"uncertainty/dev_ndcg_at_10_low": 0.4, "uncertainty/dev_ndcg_at_10_high": 0.6}
    selection = replace(selection, run=replace(selection.run, metrics=selection.run.metrics | intervals))
    card = render_model_card(make_metadata(Recipe(), task="retrieval"), 384, None, run_id="r", selection=selection)
    assert "|  | bytes | dev nDCG@10 | dev neighbor recall | test nDCG@10 | test neighbor recall |" in card
    assert "| this model, seed 0 | 128 | 0.5000 | 0.50 | 0.5000 | 0.50 |" in card
    assert "| binary | 4 | 0.4500 | 0.45 | 0.4500 | 0.45 |" in card
    assert "95% bootstrap intervals over queries:\ndev nDCG@10 0.4000 to 0.6000." in card
    assert "Queries with the passages that answer them, x, digest" in card
    assert "pairs" not in card
    assert "The encoder all-MiniLM-L6-v2 maps a text to 384 floats" in card


def test_a_model_of_vectors_is_its_compressor(tmp_path):
    compressor = CompressorNetwork([(torch.randn(4, 16), torch.zeros(4))])
    recipe = Recipe(encoder="none", dataset="vectors.npy", architecture="linear")
    described = make_metadata(recipe, task="neighbors", dataset_digest="d")
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
