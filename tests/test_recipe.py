import pytest

from twinsqueeze.errors import InputError
from twinsqueeze.recipe import Recipe


def test_defaults_are_those_of_the_study():
    recipe = Recipe()
    assert (recipe.alpha, recipe.dim, recipe.epochs, recipe.batch_size, recipe.lr, recipe.seed) == (
        0.75,
        32,
        200,
        32,
        2e-4,
        0,
    )
    assert recipe.name == "mlp32-alpha0.75-seed0"


def test_text_is_read_as_numbers():
    recipe = Recipe.parse({"alpha": "1e-1", "dim": "16", "seed": "2147483647"})
    assert (recipe.alpha, recipe.dim, recipe.seed) == (0.1, 16, 2**31 - 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", "-0.1"),
        ("alpha", "nan"),  # passes every comparison with a bound
        ("alpha", "inf"),
        ("alpha", "half"),
        ("dim", "1"),  # one dimension's cosine is -1 or 1
        ("dim", "2.5"),
        ("epochs", "0"),
        ("batch_size", "0"),
        ("lr", "0"),
        ("lr", "nan"),
        ("seed", "-1"),
        ("seed", "2147483648"),  # 2**31
        ("architecture", "transformer"),
        ("objective", "mae"),
        ("labels", "sigmoid"),
        ("device", "tpu"),
        ("encoder", ""),
        ("dataset", ""),
    ],
)
def test_a_bad_value_is_named_in_one_line(field, value):
    with pytest.raises(InputError) as caught:
        Recipe.parse({field: value})
    message = str(caught.value)
    assert message.startswith(f"{field} must be ")
    assert message.endswith(f"not {value!r}")
    assert "\n" not in message


def test_an_unknown_field_is_named():
    with pytest.raises(InputError, match=r"'alhpa' is no field of the recipe; the fields are alpha, dim"):
        Recipe.parse({"alhpa": 1})


def test_digest_follows_every_field_but_the_device_and_the_name_of_the_data():
    assert Recipe(device="cpu", dataset="demo").digest == Recipe().digest
    others = {Recipe(**{field: value}).digest for field, value in CHANGED.items()}
    assert len(others | {Recipe().digest}) == len(CHANGED) + 1


CHANGED = {
    "alpha": 0.5,
    "dim": 16,
    "epochs": 100,
    "batch_size": 64,
    "lr": 1e-3,
    "seed": 1,
    "labels": "linear",
    "encoder": "other",
}
