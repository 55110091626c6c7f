"""The command register: selection, promotion and rollback in MLflow's model registry."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import DEFAULT, Mock

import mlflow
import pandas as pd
import pytest
from scipy import stats

from tests.helpers.commands import Workplace
from tests.helpers.contention import check_succession, contend
from tests.helpers.models import make_metadata
from tests.helpers.pairs import write_pairs
from twinsqueeze.model.sentence_transformer import TextModelInfo
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry import model_registry
from twinsqueeze.registry.model_card import render_model_card

NAME = "twinsqueeze"
UNKNOWN = "unknown, see its source"


def aliases(client: mlflow.MlflowClient) -> dict[str, int]:
    """The version number of each alias."""
    return {alias: int(number) for alias, number in client.get_registered_model(NAME).aliases.items()}


def trained_run(place: Workplace, version: int) -> mlflow.entities.Run:
    return place.client.get_run(place.client.get_model_version(NAME, str(version)).tags["twinsqueeze.trained_run"])


def run(place: Workplace, *arguments: str, experiment: str = "Default") -> str:
    done = place.run(*arguments, MLFLOW_EXPERIMENT_NAME=experiment)
    assert "already exists" not in done.stderr
    return done.stdout


def train_elsewhere(place: Workplace, data: Path, encoder: Path) -> None:
    """Trains a worse compressor than those of `trained_place` in another experiment."""
    options = ["--dataset", str(data), "--encoder", str(encoder), "--dim", "2", "--epochs", "1", "--device", "cpu"]
    run(place, "train", *options, experiment="elsewhere")


def training_runs(place: Workplace) -> pd.DataFrame:
    return pd.DataFrame(
        {"run": run.info.run_id, "alpha": run.data.params["alpha"], "spearman": run.data.metrics["dev/spearman"]}
        for run in place.runs("train")
    )


def logged_table(place: Workplace, run_id: str, file: str) -> pd.DataFrame:
    return pd.DataFrame(**json.loads(place.download(run_id, file).read_text()))


def test_the_best_seed_of_the_best_recipe_becomes_the_champion(trained_place):
    frame = training_runs(trained_place)
    means = frame.groupby("alpha").spearman.mean()
    best = frame[frame.alpha == means.idxmax()].sort_values("spearman").run.iloc[-1]
    (registration,) = trained_place.runs("registration")
    assert registration.info.status == "FINISHED"
    assert registration.data.tags["twinsqueeze.trained_run"] == best
    summary = registration.data.tags["mlflow.note.content"]
    assert f"Best of 2 recipes by mean dev/spearman: {means.max():.4f}" in summary
    assert "There was no champion to compare with." in summary
    assert aliases(trained_place.client) == {"champion": 1}
    assert trained_run(trained_place, 1).info.run_id == best
    version = trained_place.client.get_model_version(NAME, "1")
    assert version.run_id == best
    assert max(map(len, version.tags.values())) <= 64


def test_description_is_the_model_card(trained_place, tiny_encoder):
    trained = trained_run(trained_place, 1)
    card = trained_place.client.get_model_version(NAME, "1").description
    assert len(card) <= 5000
    headings = "Bytes per vector, Training data, Recipe, Model selection, Results, License, Limitations"
    assert ", ".join(re.findall("^## (.*)", card, re.MULTILINE)) == headings
    rows = {line.split("|")[1].strip(): line for line in card.splitlines() if line.startswith("|")}
    own = rows[f"this model, seed {trained.data.params['seed']}"]
    assert all(f"{trained.data.metrics[name]:.4f}" in own for name in ("dev/spearman", "test/spearman", "test/mse"))
    baselines = logged_table(trained_place, trained.info.run_id, "baselines.json").set_index("model")
    assert all((name in rows) != search_only for name, search_only in baselines.search_only.items())
    low, high = (trained.data.metrics[f"uncertainty/test_spearman_{end}"] for end in ("low", "high"))
    assert f"test Spearman {low:.4f} to {high:.4f}" in card
    assert "This is the best of the seeds on dev, so its own dev scores are optimistic" in card
    assert "32 as float32, 8 as int8, 1 as binary; 256 before compression" in card
    assert trained.data.tags["twinsqueeze.dataset_digest"] in card
    frame = training_runs(trained_place)
    seeds = frame[frame.alpha == trained.data.params["alpha"]]
    recipe = [trained_place.client.get_run(run_id) for run_id in seeds.run]
    # Not binary: after few epochs all vectors may have the same signs, and Spearman is NaN.
    means = [sum(r.data.metrics[f"search/{s}_spearman_int8"] for r in recipe) / len(recipe) for s in ("dev", "test")]
    assert re.search(rf"\| int8 \| 8 \| {means[0]:.4f} \| [\d.]+ \| {means[1]:.4f} \|", card)
    assert f"- Encoder {tiny_encoder.name}: {UNKNOWN}\n- Data sentences: {UNKNOWN}\n" in card
    # Baselines with better scores in at most as many bytes are listed as limitations.
    better = baselines.index[(baselines["dev/spearman"] > seeds.spearman.mean()) & (baselines["bytes"] <= 32)]
    limitations = card.partition("## Limitations")[2]
    assert [name for name in baselines.index if f"\n  {name} (" in limitations] == list(better)


@pytest.mark.parametrize(
    ("encoder", "shown", "license_"),
    [
        ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2", "Apache 2.0"),
        ("{folder}/models/all-MiniLM-L6-v2", "all-MiniLM-L6-v2", UNKNOWN),
        ("models/all-MiniLM-L6-v2", "all-MiniLM-L6-v2", UNKNOWN),
        ("~/no/such/folder/", "folder", UNKNOWN),
        ("..", "{parent}", UNKNOWN),
        ("org/model", "org/model", UNKNOWN),
    ],
)
def test_model_card_shows_no_path_of_this_machine_and_no_limit_where_none_is(
    tmp_path, monkeypatch, encoder, shown, license_
):
    encoder, shown = (text.format(folder=tmp_path, parent=tmp_path.parent.name) for text in (encoder, shown))
    (tmp_path / "models" / "all-MiniLM-L6-v2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    metadata = make_metadata(Recipe(encoder=encoder, dataset=f"{tmp_path}/my pairs"))
    card = render_model_card(metadata, 384, TextModelInfo(None, {}, None, {}))
    assert f"- Encoder {shown}: {license_}\n" in card
    assert f"| encoder | {shown} |" in card
    assert "| dataset | my pairs |" in card
    assert "- Texts are not truncated" in card
    assert not re.search(r"~/|models/|" + re.escape(str(tmp_path)), card)


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    monkeypatch.setattr(model_registry, "SETTLE_SECONDS", 0)  # no other process registers


@pytest.fixture(scope="module")
def promoted(trained_place, tiny_encoder, make_once) -> Workplace:
    """A store whose champion, version 2, replaced one of 2 dimensions; to be read only."""

    def promote(folder):
        folder.mkdir()
        place = trained_place.copy_to(folder)
        place.client.delete_registered_model(NAME)
        train_elsewhere(place, trained_place.folder / "sentences", tiny_encoder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_registry, "SETTLE_SECONDS", 0)
            run(place, "register", "--experiment", "elsewhere")
            (folder / "output.txt").write_text(run(place, "register"))

    return Workplace(make_once("promoted", promote), trained_place.cache)


@pytest.fixture
def place(promoted, tmp_path) -> Workplace:
    return promoted.copy_to(tmp_path)


def test_better_candidate_replaces_the_champion(promoted):
    assert aliases(promoted.client) == {"champion": 2, "previous": 1}
    predictions = [logged_table(promoted, trained_run(promoted, n).info.run_id, "predictions.json") for n in (2, 1)]
    dev = [frame[frame.split == "dev"] for frame in predictions]
    spearmans = [stats.spearmanr(frame.predicted, frame.label)[0] for frame in dev]
    metrics = promoted.runs()[0].data.metrics
    difference, low, high = (metrics[f"gate/{name}"] for name in ("difference", "low", "high"))
    assert difference == pytest.approx(spearmans[0] - spearmans[1], abs=1e-3)
    assert 0 < low < difference < high
    comparison = f"{difference:+.4f}, 95% interval {low:+.4f} to {high:+.4f}"
    output = (promoted.folder / "output.txt").read_text()
    assert "Registered as version 2, champion." in output
    assert comparison in output
    assert ": better." in output
    assert comparison in promoted.client.get_model_version(NAME, "2").description


def test_a_candidate_that_is_not_better_becomes_the_challenger(trained_place, tiny_encoder, tmp_path):
    """On its dev pairs, which are other ones than the champion's."""
    place = trained_place.copy_to(tmp_path)
    train_elsewhere(place, write_pairs(tmp_path / "sentences", train=200, dev=120, test=24), tiny_encoder)
    done = place.run("register", "--experiment", "elsewhere")
    output = done.stdout
    assert "evaluating the champion, version 1, on the dev data of run" in done.stderr
    assert "Registered as version 2, challenger." in output
    assert "worse, so the champion stays" in output
    (command,) = (line.partition("  python -c ")[2] for line in output.splitlines() if "promote it anyway" in line)
    assert command.endswith(".set_registered_model_alias('twinsqueeze', 'champion', '2')\"")
    assert aliases(place.client) == {"champion": 1, "challenger": 2}
    assert trained_run(place, 2).info.experiment_id == place.client.get_experiment_by_name("elsewhere").experiment_id


def test_a_run_is_registered_once_and_compared_again_until_it_is_the_champion(place, monkeypatch):
    """A process that dies between registration and promotion leaves a version without alias."""
    place.client.delete_registered_model_alias(NAME, "champion")
    assert "version 2, champion. There was no champion" in run(place, "register")

    place.client.set_registered_model_alias(NAME, "champion", "1")
    assign = Mock(wraps=model_registry.assign_alias_if_unchanged, side_effect=[False, DEFAULT])
    monkeypatch.setattr(model_registry, "assign_alias_if_unchanged", assign)  # another process sets a champion first
    done = place.run("register")
    assert "another process has changed the champion: comparing with the new one" in done.stderr
    assert "Run already registered, compared again: version 2, champion." in done.stdout
    assert "95% interval" in done.stdout
    assert aliases(place.client)["champion"] == 2

    assert "Nothing to do: this run is already version 2 (champion) of twinsqueeze." in run(place, "register")
    assert len(place.client.search_model_versions(f"name = '{NAME}'")) == 2


def test_rollback_restores_the_previous_champion(place):
    output = run(place, "register", "--rollback", "true")
    assert "version 1 is the champion again instead of version 2" in output
    assert aliases(place.client) == {"champion": 1}
    assert "twinsqueeze.rolled_back" in place.client.get_model_version(NAME, "2").tags
    assert place.runs()[0].data.tags["twinsqueeze.kind"] == "registration"
    assert "was rolled back" in run(place, "register")  # and is not promoted again
    assert aliases(place.client)["champion"] == 1


@pytest.fixture
def store(create_store, tmp_path, use_store) -> mlflow.MlflowClient:
    use_store(create_store(tmp_path))
    mlflow.MlflowClient().create_registered_model(NAME)
    return mlflow.MlflowClient()


@pytest.fixture
def versions(store, tmp_path) -> list[model_registry.Version]:
    """Three versions; the first one is the champion."""
    for _ in range(3):
        store.create_model_version(NAME, str(tmp_path))
    versions = model_registry.list_versions()[::-1]
    model_registry.promote(versions[0], None)
    return versions


def test_second_rollback_goes_back_one_version_further(store, versions):
    one, two, three = versions
    model_registry.promote(two, one)
    model_registry.promote(three, two)
    assert aliases(store) == {"champion": 3, "previous": 2}
    assert [version.number for version in model_registry.roll_back()] == [3, 2]
    assert aliases(store) == {"champion": 2, "previous": 1}
    model_registry.roll_back()
    assert aliases(store) == {"champion": 1}
    with pytest.raises(ValueError, match="has no alias `previous` to roll back to"):
        model_registry.roll_back()


def test_long_description_is_truncated_at_a_line_break(store, versions):
    model_registry.set_description(versions[0], "\n".join(f"line {i:05}" for i in range(1000)))
    text = store.get_model_version(NAME, "1").description
    assert len(text) <= 5000
    lines = text.splitlines()
    assert lines[-1] == "Truncated. Full model card: extra_files/README.md of the model."
    assert all(len(line) == 10 for line in lines[:-2])


@pytest.mark.slow
def test_concurrent_registrations_leave_one_champion(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    versions = contend(uri, processes=3, rounds=5)
    assert len(versions) == 15
    check_succession(mlflow.MlflowClient(uri), versions)


@pytest.mark.parametrize("replaced", [1, 2])
def test_a_promotion_stands_only_if_the_next_version_replaced_it(store, versions, monkeypatch, replaced):
    """Another process promotes version 3 at once, after it has compared it with version 1 or 2."""
    one, two, three = versions
    other = SimpleNamespace(sleep=lambda _: model_registry.promote(three, versions[replaced - 1]))
    monkeypatch.setattr(model_registry, "time", other)  # between setting the alias and the check afterwards
    assert model_registry.assign_alias_if_unchanged(two, one, promoted=True) == (replaced == 2)
    assert aliases(store) == {"champion": 3, "previous": replaced}
    tags = store.get_model_version(NAME, "2").tags
    assert tags.get("twinsqueeze.replaces") == ("1" if replaced == 2 else None)


def test_an_alias_that_another_process_inserts_at_once_is_updated(store, versions, monkeypatch):
    """MLflow's store looks for the alias, then inserts it: the second of two inserts fails."""
    set_alias = Mock(
        wraps=store.set_registered_model_alias, side_effect=[mlflow.MlflowException("not unique"), DEFAULT]
    )
    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", set_alias)
    model_registry.promote(versions[1], None)
    assert aliases(store)["champion"] == 2


def test_a_comparison_with_a_former_champion_changes_nothing(store, versions):
    one, two, three = versions
    model_registry.promote(two, one)
    assert not model_registry.assign_alias_if_unchanged(three, one, promoted=True)
    assert not model_registry.assign_alias_if_unchanged(three, None, promoted=False)
    assert aliases(store) == {"champion": 2, "previous": 1}
    assert model_registry.assign_alias_if_unchanged(three, two, promoted=True)
    assert aliases(store) == {"champion": 3, "previous": 2}
