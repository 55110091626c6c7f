"""The command register: selection, promotion and rollback in MLflow's model registry."""

import json
import re

import mlflow
import pandas as pd
import pytest
from scipy import stats

from tests.helpers.commands import Workplace
from tests.helpers.contention import check_succession, contend
from tests.helpers.pairs import write_pairs
from twinsqueeze.registry import model_registry

DIM = ["--dim", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Enough dev pairs to distinguish one epoch from thirty."""
    return str(write_pairs(tmp_path_factory.mktemp("data") / "sentences", train=200, dev=150, test=24))


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("work"), shared_cache)


def aliases(place: Workplace) -> dict[str, int]:
    """The version number of each alias."""
    return {name: int(number) for name, number in place.client.get_registered_model("twinsqueeze").aliases.items()}


def run(place: Workplace, *arguments: str, experiment: str = "Default") -> str:
    done = place.command(*arguments, MLFLOW_EXPERIMENT_NAME=experiment)
    assert done.returncode == 0, done.stderr
    assert "already exists" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first(place, data):
    """The best run of a grid of one epoch, registered in an empty registry."""
    grid = place.folder / "grid.yaml"
    grid.write_text(f"dataset: {data}\ndevice: cpu\nalpha: [0, 0.75]\nseed: [0, 1]\nepochs: 1\ndim: 8\n")
    run(place, "ablation", "--grid", str(grid))
    output = run(place, "register")
    return output, place.runs()[0], aliases(place)


def training_runs(place: Workplace) -> pd.DataFrame:
    runs = [r for r in place.runs() if r.data.tags["twinsqueeze.kind"] == "train"]
    return pd.DataFrame(
        {"run": r.info.run_id, "alpha": r.data.params["alpha"], "spearman": r.data.metrics["dev/spearman"]}
        for r in runs
    )


def test_the_best_seed_of_the_best_recipe_becomes_the_champion(place, first):
    output, registration, aliases_after = first
    frame = training_runs(place)
    best_alpha = frame.groupby("alpha").spearman.mean().idxmax()
    best = frame[frame.alpha == best_alpha].sort_values("spearman").run.iloc[-1]
    assert f"Best of 2 recipes by mean dev/spearman: {frame.groupby('alpha').spearman.mean().max():.4f}" in output
    assert "Registered as version 1, champion. There was no champion to compare with." in output
    assert aliases_after == {"champion": 1}
    assert registration.info.status == "FINISHED"
    assert registration.data.tags["twinsqueeze.kind"] == "registration"
    assert registration.data.tags["twinsqueeze.trained_run"] == best
    assert place.client.get_model_version("twinsqueeze", "1").tags["twinsqueeze.trained_run"] == best


def test_description_is_the_model_card(place, first):
    registered = first[1].data.tags["twinsqueeze.trained_run"]
    trained = place.client.get_run(registered)
    card = place.client.get_model_version("twinsqueeze", "1").description
    assert len(card) <= 5000
    headings = re.findall("^## (.*)", card, re.MULTILINE)
    assert headings == [
        "Bytes per vector",
        "Training data",
        "Recipe",
        "Model selection",
        "Results",
        "License",
        "Limitations",
    ]
    rows = {line.split("|")[1].strip(): line for line in card.splitlines() if line.startswith("|")}
    own = rows[f"this model, seed {trained.data.params['seed']}"]
    for name in ("dev/spearman", "test/spearman", "test/mse"):
        assert f"{trained.data.metrics[name]:.4f}" in own
    baselines = json.loads(place.download(registered, "baselines.json").read_text())
    for row in (dict(zip(baselines["columns"], row, strict=True)) for row in baselines["data"]):
        assert (row["model"] in rows) != row["search_only"]
    low, high = (trained.data.metrics[f"uncertainty/test_spearman_{end}"] for end in ("low", "high"))
    assert f"test Spearman {low:.4f} to {high:.4f}" in card
    assert "This is the best of the seeds on dev, so its own dev scores are optimistic" in card
    assert "32 as float32, 8 as int8, 1 as binary; 1,536 before compression" in card
    assert trained.data.tags["twinsqueeze.dataset_digest"] in card
    assert "Texts are truncated after 256 tokens." in card
    seeds = training_runs(place).query("alpha == @trained.data.params['alpha']").run
    recipe = [place.client.get_run(run_id) for run_id in seeds]
    # Not binary: after one epoch all vectors may have the same signs, and Spearman is NaN.
    means = [sum(r.data.metrics[f"{s}/spearman_int8"] for r in recipe) / len(recipe) for s in ("dev", "test")]
    assert re.search(rf"\| int8 \| 8 \| {means[0]:.4f} \| [\d.]+ \| {means[1]:.4f} \|", card)
    assert "- Encoder all-MiniLM-L6-v2: Apache 2.0\n" in card
    assert "- Data sentences: unknown, see its source\n" in card
    # Baselines with better scores in at most as many bytes are listed as limitations.
    columns = baselines["columns"]
    table = pd.DataFrame(baselines["data"], columns=columns).set_index("model")
    mean = training_runs(place).groupby("alpha").spearman.mean().max()
    better = table.index[(table["dev/spearman"] > mean) & (table["bytes"] <= 32)]
    limitations = card.partition("## Limitations")[2]
    assert all(f"{name} (" in limitations for name in better)
    assert all(f"{name} (" not in limitations for name in table.index.difference(better))


@pytest.fixture(scope="module")
def better(place, data, first):
    """A recipe trained for 30 epochs, registered after the first one."""
    run(place, "train", "--dataset", data, "--epochs", "30", "--lr", "1e-3", *DIM)
    output = run(place, "register")
    return output, place.runs()[0], aliases(place)


def dev_predictions(place: Workplace, run_id: str) -> pd.DataFrame:
    table = json.loads(place.download(run_id, "predictions.json").read_text())
    frame = pd.DataFrame(table["data"], columns=table["columns"])
    return frame[frame.split == "dev"]


def test_better_candidate_replaces_the_champion(place, first, better):
    output, registration, aliases_after = better
    assert aliases_after == {"champion": 2, "previous": 1}
    candidate, champion = (
        dev_predictions(place, version.data.tags["twinsqueeze.trained_run"]) for version in (registration, first[1])
    )
    spearmans = [stats.spearmanr(frame.predicted, frame.label)[0] for frame in (candidate, champion)]
    metrics = registration.data.metrics
    assert metrics["gate/difference"] == pytest.approx(spearmans[0] - spearmans[1], abs=1e-3)
    assert 0 < metrics["gate/low"] < metrics["gate/difference"] < metrics["gate/high"]
    comparison = (
        f"{metrics['gate/difference']:+.4f}, 95% interval {metrics['gate/low']:+.4f} to {metrics['gate/high']:+.4f}"
    )
    assert comparison in output
    assert ": better." in output
    assert comparison in place.client.get_model_version("twinsqueeze", "2").description


def test_worse_candidate_becomes_the_challenger(place, data, better):
    run(place, "train", "--dataset", data, "--epochs", "2", *DIM, experiment="elsewhere")
    output = run(place, "register", "--experiment", "elsewhere")
    assert "Registered as version 3, challenger." in output
    assert "worse, so the champion stays" in output
    (command,) = (line.partition("  python -c ")[2] for line in output.splitlines() if "promote it anyway" in line)
    assert command.endswith(".set_registered_model_alias('twinsqueeze', 'champion', '3')\"")
    assert aliases(place) == {"champion": 2, "previous": 1, "challenger": 3}
    experiment_id = place.client.get_experiment_by_name("elsewhere").experiment_id
    trained = place.client.search_runs([experiment_id])
    registered = place.client.get_model_version("twinsqueeze", "3").tags["twinsqueeze.trained_run"]
    assert registered in [r.info.run_id for r in trained]


def test_candidates_with_other_dev_pairs_are_not_compared(place, better, tmp_path_factory):
    other = str(write_pairs(tmp_path_factory.mktemp("data") / "others", dev=30))
    run(place, "train", "--dataset", other, "--epochs", "1", *DIM, experiment="others")
    output = run(place, "register", "--experiment", "others")
    assert "was selected on other dev pairs: no comparison is possible" in output
    assert aliases(place) == {"champion": 2, "previous": 1, "challenger": 4}


def test_the_same_run_is_not_registered_twice(place, better):
    before = len(place.client.search_model_versions("name = 'twinsqueeze'"))
    output = run(place, "register")
    assert "Nothing to do: this run is already version 2 (champion) of twinsqueeze." in output
    assert len(place.client.search_model_versions("name = 'twinsqueeze'")) == before


def test_evaluation_of_the_champion_is_tagged_with_the_run_that_trained_it(place, better):
    """The comparison joins evaluations to trained runs by this tag."""
    run(place, "evaluate", "--model", "models:/twinsqueeze@champion", "--split", "dev")
    evaluation = place.runs()[0]
    trained = place.client.get_run(better[1].data.tags["twinsqueeze.trained_run"])
    assert evaluation.data.tags["twinsqueeze.trained_run"] == trained.info.run_id
    assert evaluation.data.metrics["dev/spearman"] == trained.data.metrics["dev/spearman"]


def test_version_without_alias_is_compared_again(place, better):
    """A process that dies between registration and promotion leaves such a version; no second one is registered."""
    before = len(place.client.search_model_versions("name = 'twinsqueeze'"))
    place.client.delete_registered_model_alias("twinsqueeze", "champion")
    output = run(place, "register")
    assert "version 2, champion. There was no champion" in output
    place.client.set_registered_model_alias("twinsqueeze", "champion", "1")
    output = run(place, "register")
    assert "Run already registered, compared again: version 2, champion." in output
    assert "95% interval" in output
    assert len(place.client.search_model_versions("name = 'twinsqueeze'")) == before
    assert aliases(place)["champion"] == 2


def test_rollback_restores_the_previous_champion(place, better):
    """Runs after the tests above, since it changes their registry."""
    output = run(place, "register", "--rollback", "true")
    assert "version 1 is the champion again instead of version 2" in output
    restored = aliases(place)
    assert restored["champion"] == 1
    assert "previous" not in restored
    assert "twinsqueeze.rolled_back" in place.client.get_model_version("twinsqueeze", "2").tags
    assert place.runs()[0].data.tags["twinsqueeze.kind"] == "registration"
    output = run(place, "register")
    assert "was rolled back" in output  # and is not promoted again
    assert aliases(place)["champion"] == 1


@pytest.fixture
def store(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(None)
    client = mlflow.MlflowClient(uri)
    client.create_registered_model("twinsqueeze")
    for _ in range(3):
        client.create_model_version("twinsqueeze", str(tmp_path))
    return client


def test_second_rollback_goes_back_one_version_further(store):
    one, two, three = reversed(model_registry.list_versions())
    model_registry.promote(one, None)
    model_registry.promote(two, one)
    model_registry.promote(three, two)

    def named() -> dict[str, str]:
        return {alias: str(number) for alias, number in store.get_registered_model("twinsqueeze").aliases.items()}

    assert named() == {"champion": "3", "previous": "2"}
    assert [version.number for version in model_registry.roll_back()] == [3, 2]
    assert named() == {"champion": "2", "previous": "1"}
    model_registry.roll_back()
    assert named() == {"champion": "1"}
    with pytest.raises(ValueError, match="has no alias `previous` to roll back to"):
        model_registry.roll_back()


def test_long_description_is_truncated_at_a_line_break(store, monkeypatch):
    monkeypatch.setattr(
        mlflow, "register_model", lambda uri, name, tags: store.create_model_version(name, "nowhere", tags=tags)
    )
    monkeypatch.setattr(model_registry.model_loader, "compute_model_digests", lambda model_id: "{}")
    logged = store.create_logged_model("0", "text_model").model_id
    version = model_registry.add_version(logged, "\n".join(f"line {i:05}" for i in range(1000)), {})
    text = store.get_model_version("twinsqueeze", str(version.number)).description
    assert len(text) <= 5000
    lines = text.splitlines()
    assert lines[-1] == "Truncated. Full model card: extra_files/README.md of the model."
    assert all(len(line) == 10 for line in lines[:-2])


@pytest.mark.slow
def test_concurrent_registrations_leave_one_champion(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    versions = contend(uri, processes=3, rounds=8)
    assert len(versions) == 24
    check_succession(mlflow.MlflowClient(uri), versions)


def while_it_settles(monkeypatch, action) -> None:
    """Lets another process act between setting the alias and the check afterwards."""
    monkeypatch.setattr(model_registry.time, "sleep", lambda seconds: action())


def test_a_promotion_that_another_process_overwrote_is_compared_again(store, monkeypatch):
    """Two processes compare with version 1 at once, and the second one sets the alias last."""
    one, two, three = reversed(model_registry.list_versions())
    model_registry.promote(one, None)
    while_it_settles(monkeypatch, lambda: model_registry.promote(three, one))
    assert not model_registry.assign_alias_if_unchanged(two, one, promoted=True)
    assert store.get_registered_model("twinsqueeze").aliases == {"champion": 3, "previous": 1}
    assert "twinsqueeze.replaces" not in store.get_model_version("twinsqueeze", "2").tags


def test_a_promotion_stands_if_a_better_version_replaced_it_at_once(store, monkeypatch):
    one, two, three = reversed(model_registry.list_versions())
    model_registry.promote(one, None)
    while_it_settles(monkeypatch, lambda: model_registry.promote(three, two))
    assert model_registry.assign_alias_if_unchanged(two, one, promoted=True)
    assert store.get_registered_model("twinsqueeze").aliases == {"champion": 3, "previous": 2}
    assert store.get_model_version("twinsqueeze", "2").tags["twinsqueeze.replaces"] == "1"


def test_an_alias_that_another_process_inserts_at_once_is_updated(store, monkeypatch):
    """MLflow's store looks for the alias, then inserts it: the second of two inserts fails."""
    one, *_ = reversed(model_registry.list_versions())
    set_alias, failures = mlflow.MlflowClient.set_registered_model_alias, [mlflow.MlflowException("not unique")]

    def fail_once(*arguments) -> None:
        if failures:
            raise failures.pop()
        set_alias(*arguments)

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", fail_once)
    model_registry.promote(one, None)
    assert store.get_registered_model("twinsqueeze").aliases["champion"] == 1


def test_a_comparison_with_a_former_champion_changes_nothing(store, monkeypatch):
    while_it_settles(monkeypatch, lambda: None)
    one, two, three = reversed(model_registry.list_versions())
    model_registry.promote(one, None)
    model_registry.promote(two, one)
    assert not model_registry.assign_alias_if_unchanged(three, one, promoted=True)
    assert not model_registry.assign_alias_if_unchanged(three, None, promoted=False)
    assert store.get_registered_model("twinsqueeze").aliases == {"champion": 2, "previous": 1}
    assert model_registry.assign_alias_if_unchanged(three, two, promoted=True)
    assert store.get_registered_model("twinsqueeze").aliases == {"champion": 3, "previous": 2}
