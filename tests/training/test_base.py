"""Trainings that start from a trained compressor."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers.checkpoints import CheckpointFolder, RecordingCheckpoint
from tests.helpers.models import base_of
from tests.helpers.recipes import LINEAR, PRODUCT, SIGN, make_pairs, make_recipes
from tests.helpers.reference_training import ReferenceTraining
from tests.helpers.refusals import refusal
from tests.helpers.results import same_bits
from tests.helpers.vectors import unit_rows
from twinsqueeze.model.quantizers import fit_codebooks
from twinsqueeze.recipe import Recipe
from twinsqueeze.training import loop
from twinsqueeze.training.base import Base, resolve_bases
from twinsqueeze.training.loop import train_replicas

SHAPES = {"mlp": {"dim": 8}, "product": LINEAR | PRODUCT | {"dim": 12}, "sign": LINEAR | SIGN | {"dim": 16}}


@cache
def train_base(shape: str, lr: float = 1e-3) -> Base:
    """A compressor that was trained with another seed and more sentences than `small_train` has."""
    (result,) = train_replicas(make_recipes(seeds=[9], lr=lr, **SHAPES[shape]), *make_pairs(24))
    return base_of(result)


def adapted(base: Base, alphas=(0.75,), seeds=(3,), **fields) -> list[Recipe]:
    dim = base.network.dim
    return [base.adapt_recipe(recipe) for recipe in make_recipes(alphas, seeds, base="any", dim=dim, **fields)]


@pytest.mark.parametrize("shape", SHAPES)
def test_without_epochs_only_the_codebooks_change(shape, small_train, small_dev, monkeypatch):
    base = train_base(shape)
    monkeypatch.setattr(loop, "make_teachers", lambda *_: pytest.fail("nothing is trained"))
    recipes = adapted(base, seeds=[3, 4], epochs=0, teacher="projection", neighbor_weight=1)
    for recipe, result in zip(recipes, train_replicas(recipes, small_train, small_dev, base=base.network), strict=True):
        torch.testing.assert_close(result.compressor.layers, base.network.layers, rtol=0, atol=0)
        assert [len(result.history.loss), *map(len, result.history.dev.values())] == [0] * 5
        assert result.compressor.precision == base.network.precision == recipe.precision
        if recipe.quantizer == "product":
            (weight, bias), vectors = base.network.layers[0], small_train.embeddings
            outputs = base.network.compress(torch.from_numpy(vectors)).numpy()
            np.testing.assert_allclose(outputs, unit_rows(vectors @ weight.numpy().T + bias.numpy()), atol=1e-6)
            expected = fit_codebooks(outputs, recipe.subvector_dim, recipe.seed)
            assert torch.equal(result.compressor.codebooks, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_training_continues_the_base_as_pytorchs_autograd_does(shape, small_train, small_dev):
    base = train_base(shape)
    (recipe,) = adapted(base, loss=SHAPES[shape].get("loss", "mse"))
    reference = ReferenceTraining(recipe, small_train, base.network.layers)
    losses = reference.train_all_epochs()
    (result,) = train_replicas([recipe], small_train, small_dev, base=base.network)
    np.testing.assert_allclose(result.history.loss, losses, rtol=1e-4)
    torch.testing.assert_close(result.compressor.layers, reference.model.layers(), rtol=0, atol=2e-5)


def test_a_training_resumes_from_its_own_base_alone(small_train, small_dev, tmp_path):
    folder = CheckpointFolder(tmp_path, small_train, small_dev)
    base, other = train_base("product"), train_base("product", lr=1e-2)
    recipes = adapted(base, [0, 0.75], [5, 3])
    saving = RecordingCheckpoint(recipes)
    uninterrupted = train_replicas(recipes, *folder.pairs, base=base.network, checkpoint=saving)
    for epoch in (0, 2):
        folder.write(recipes, saving.contents[epoch])
        resumed = folder.train(recipes, base=base.network)
        assert {result.resumed_from_epoch for result in resumed} == {epoch}
        assert all(map(same_bits, uninterrupted, resumed))
    with folder.open(adapted(other, [0, 0.75], [5, 3])) as checkpoint:
        assert checkpoint.resume_state is None


def test_a_recipe_adopts_the_fields_of_its_base():
    base = train_base("product")
    recipe = base.adapt_recipe(Recipe.preset("best", base="x", lr=1e-4))
    fields = ("architecture", "dim", "quantizer", "subvector_dim", "init", "base", "lr", "loss", "epochs")
    expected = ["linear", 12, "product", 4, "random", base.digest, 1e-4, "pearson", 15]
    assert [getattr(recipe, field) for field in fields] == expected
    assert recipe.name == f"best-a0-s0-base_{base.digest[:8]}-lr0.0001"
    assert base.adapt_recipe(recipe) == recipe
    plain = Recipe()
    assert resolve_bases([recipe, plain], lambda _: base) == ([recipe, plain], {base.digest: base})
    same, other = train_base.__wrapped__("product"), train_base("product", lr=1e-2)  # the first is trained again
    assert same.digest == base.digest != other.digest


@pytest.mark.parametrize(("field", "value", "own"), [("dim", 16, "12"), ("quantizer", "sign", "product")])
def test_a_value_that_differs_from_the_base_is_refused(field, value, own):
    message = refusal(train_base("product").adapt_recipe, Recipe(base="x", **{field: value}))
    assert message == f"{field} must be {own}, as in base 'base', not {value}: leave it out"


def test_data_that_the_base_does_not_fit_are_refused():
    (result,) = train_replicas(make_recipes(), *make_pairs(24))
    trained, unknown = base_of(result, encoder="e", fingerprint="aa"), base_of(result)
    other = SimpleNamespace(name="other", fingerprint="bb")
    for base in (trained, unknown):
        assert refusal(base.check_input, None, 25) == "base 'base' takes vectors of 24 floats, not of 25"
        base.check_input(None, 24)
        base.check_input(SimpleNamespace(name="e", fingerprint="aa"), 24)
    unknown.check_input(other, 24)
    assert refusal(trained.check_input, other, 24) == (
        "base 'base' was trained with encoder 'e', whose files are not those of 'other': pass the encoder of the base"
    )
    assert "does not record its recipe" in refusal(Base.load, "weights", unknown.network, None)


def test_recipes_and_bases_go_together(small_train, small_dev):
    base = train_base("mlp")
    for recipes, network in ((make_recipes(), base.network), (adapted(base), None)):
        with pytest.raises(ValueError, match="a base is passed with the recipes that have one"):
            train_replicas(recipes, small_train, small_dev, base=network)
