"""Trainings that start from a trained compressor."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers.checkpoints import CheckpointFolder
from tests.helpers.models import base_of
from tests.helpers.pairs import random_pairs
from tests.helpers.recipes import LINEAR, PRODUCT, SIGN, make_pairs, make_recipes
from tests.helpers.reference_training import ReferenceTraining
from tests.helpers.refusals import refusal
from tests.helpers.results import same_bits
from tests.helpers.vectors import unit_rows
from twinsqueeze.model.quantizers import fit_codebooks
from twinsqueeze.recipe import Recipe
from twinsqueeze.training import loop
from twinsqueeze.training.base import Base, resolve_bases
from twinsqueeze.training.checkpointing import TrainingCheckpoint
from twinsqueeze.training.loop import train_replicas

SHAPES = {"mlp": {"dim": 8}, "product": LINEAR | PRODUCT | {"dim": 12}, "sign": LINEAR | SIGN | {"dim": 16}}


def train_base(dimension: int = 24, **fields) -> Base:
    """A compressor that was trained on other pairs than those of `small_train`."""
    (result,) = train_replicas(make_recipes(seeds=[9], **fields), *make_pairs(dimension))
    return base_of(result)


def adapted(base: Base, alphas=(0.75,), seeds=(3,), **fields) -> list[Recipe]:
    dim = base.network.dim
    return [base.adapt_recipe(recipe) for recipe in make_recipes(alphas, seeds, base="any", dim=dim, **fields)]


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_without_epochs_only_the_codebooks_change(fields, small_train, small_dev, monkeypatch):
    base = train_base(**fields)
    monkeypatch.setattr(loop, "make_teachers", lambda *_: pytest.fail("nothing is trained"))
    recipes = adapted(base, seeds=[3, 4], epochs=0, teacher="projection", neighbor_weight=1)
    for recipe, result in zip(recipes, train_replicas(recipes, small_train, small_dev, base=base.network), strict=True):
        for layer, before in zip(result.compressor.layers, base.network.layers, strict=True):
            assert all(map(torch.equal, layer, before))
        assert [len(result.history.loss), *map(len, result.history.dev.values())] == [0] * 5
        assert result.compressor.precision == base.network.precision == recipe.precision
        if recipe.quantizer == "product":
            outputs = base.network.compress(torch.from_numpy(small_train.embeddings)).numpy()
            expected = fit_codebooks(outputs, recipe.subvector_dim, recipe.seed)
            assert torch.equal(result.compressor.codebooks, expected)
            (weight, bias), unit = base.network.layers[0], small_train.embeddings
            np.testing.assert_allclose(outputs, unit_rows(unit @ weight.numpy().T + bias.numpy()), atol=1e-6)


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_a_training_continues_the_base_as_pytorchs_autograd_does(fields, small_train, small_dev):
    base = train_base(**fields)
    (recipe,) = adapted(base, loss=fields.get("loss", "mse"))
    reference = ReferenceTraining(recipe, small_train, base.network.layers)
    losses = reference.train_all_epochs()
    (result,) = train_replicas([recipe], small_train, small_dev, base=base.network)
    np.testing.assert_allclose(result.history.loss, losses, rtol=1e-4)
    for layer, expected in zip(result.compressor.layers, reference.model.layers(), strict=True):
        torch.testing.assert_close(layer, expected, rtol=0, atol=2e-5)


class EveryEpoch(TrainingCheckpoint):
    """Collects the content of the checkpoint at every epoch."""

    def maybe_save(self, get_state) -> None:
        self.contents = [*getattr(self, "contents", []), self.serialize(get_state())]


def test_a_training_resumes_from_its_own_base_alone(small_train, small_dev, tmp_path):
    folder = CheckpointFolder(tmp_path, small_train, small_dev)
    base, other = (train_base(**SHAPES["product"], lr=lr) for lr in (1e-3, 1e-2))
    recipes = adapted(base, [0, 0.75], [5, 3])
    saving = EveryEpoch(None, recipes, None, print)
    uninterrupted = train_replicas(recipes, *folder.pairs, base=base.network, checkpoint=saving)
    for epoch, content in enumerate(saving.contents):
        folder.write(recipes, content)
        resumed = folder.train(recipes, base=base.network)
        assert {result.resumed_from_epoch for result in resumed} == {epoch}
        assert all(map(same_bits, uninterrupted, resumed))
    with folder.open(adapted(other, [0, 0.75], [5, 3])) as checkpoint:
        assert checkpoint.resume_state is None


def test_a_recipe_adopts_the_fields_of_its_base():
    base = train_base(**SHAPES["product"])
    recipe = base.adapt_recipe(Recipe.preset("best", base="x", lr=1e-4))
    fields = ("architecture", "dim", "quantizer", "subvector_dim", "init", "base", "lr", "loss", "epochs")
    expected = ["linear", 12, "product", 4, "random", base.digest, 1e-4, "pearson", 15]
    assert [getattr(recipe, field) for field in fields] == expected
    assert recipe.name == f"best-a0-s0-base_{base.digest[:8]}-lr0.0001"
    assert base.adapt_recipe(recipe) == recipe
    plain = Recipe()
    assert resolve_bases([recipe, plain], lambda _: base) == ([recipe, plain], {base.digest: base})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 16}, "dim must be 12, as in base 'champion', not 16: leave it out"),
        ({"quantizer": "sign"}, "quantizer must be product, as in base 'champion', not sign: leave it out"),
    ],
)
def test_a_value_that_differs_from_the_base_is_refused(fields, message):
    base = train_base(**SHAPES["product"])
    named = Base("champion", base.network, base.metadata)
    assert message in refusal(named.adapt_recipe, Recipe(base="champion", **fields))


def test_data_that_the_base_does_not_fit_are_refused():
    trained = base_of(*train_replicas(make_recipes(), *make_pairs(24)), encoder="e", fingerprint="aa")
    unknown = base_of(*train_replicas(make_recipes(), *make_pairs(24)))
    for base in (trained, unknown):
        assert refusal(base.check_input, None, 25) == "base 'base' takes vectors of 24 floats, not of 25"
        base.check_input(None, 24)
        base.check_input(SimpleNamespace(name="e", fingerprint="aa"), 24)
    other = SimpleNamespace(name="other", fingerprint="bb")
    unknown.check_input(other, 24)
    message = (
        "base 'base' was trained with encoder 'e', whose files are not those of 'other': pass the encoder of the base"
    )
    assert refusal(trained.check_input, other, 24) == message
    assert "does not record its recipe" in refusal(Base.load, "weights", unknown.network, None)


def test_recipes_and_bases_go_together(small_train, small_dev):
    base = train_base(dim=8)
    for recipes, network in ((make_recipes(), base.network), (adapted(base), None)):
        with pytest.raises(ValueError, match="a base is passed with the recipes that have one"):
            train_replicas(recipes, small_train, small_dev, base=network)
    other = random_pairs(pairs=10, sentences=10, dimension=24, seed=0)
    assert base.digest == base_of(*train_replicas(make_recipes(seeds=[9]), *make_pairs(24))).digest
    assert base.digest != base_of(*train_replicas(make_recipes(seeds=[9]), other, small_dev)).digest
