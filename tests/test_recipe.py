import pytest

from tests.helpers.commands import ROOT
from tests.helpers.refusals import refusal
from twinsqueeze.grid import load_grid
from twinsqueeze.recipe import Recipe
from twinsqueeze.utils.text import format_value


def test_defaults_are_those_of_the_study():
    study = {"alpha": 0.75, "dim": 32, "epochs": 200, "batch_size": 32, "lr": 2e-4, "seed": 0}
    assert Recipe().model_dump(include=set(study)) == study


def test_text_is_read_as_numbers():
    recipe = Recipe.parse({"alpha": "1e-1", "dim": "16", "seed": "2147483647"})
    assert (recipe.alpha, recipe.dim, recipe.seed) == (0.1, 16, 2**31 - 1)


BAD_VALUES = {
    "alpha": ["-0.1", "nan", "inf", "half"],  # NaN passes every comparison with a bound
    "dim": ["1", "2.5"],  # one dimension's cosine is -1 or 1
    "epochs": ["0"],
    "batch_size": ["0"],
    "lr": ["0", "nan"],
    "seed": ["-1", "2147483648"],  # 2**31
    "architecture": ["transformer"],
    "loss": ["mae"],
    "label_transform": ["sigmoid"],
    "device": ["tpu"],
    "encoder": [""],
    "dataset": [""],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in BAD_VALUES for value in BAD_VALUES[field]])
def test_a_bad_value_is_named_in_one_line(field, value):
    message = refusal(Recipe.parse, {field: value})
    assert message.startswith(f"{field} must be ")
    assert message.endswith(f"not {value!r}")


def test_digest_depends_on_every_field_but_the_device_and_the_name_of_the_data():
    changed = {"alpha": 0.5, "dim": 16, "epochs": 100, "batch_size": 64, "lr": 1e-3, "seed": 1}
    changed |= {"label_transform": "linear", "encoder": "other"}
    digests = {Recipe(**{field: value}).digest for field, value in changed.items()}
    assert len(digests | {Recipe().digest}) == len(changed) + 1
    assert Recipe(device="cpu", dataset="demo").digest == Recipe().digest


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes a grid into grid.yaml of the home directory and loads it."""

    def load(text: str, **fields: str) -> list[Recipe]:
        (tmp_path / "grid.yaml").write_text(text)
        return load_grid("~/grid.yaml", **fields)

    monkeypatch.setenv("HOME", str(tmp_path))
    return load


def test_a_grid_is_every_combination(load):
    recipes = load("alpha: [0, 0.75]\nseed: [0, 1, 2]\ndim: 8\nlr: 1e-3\n")
    assert [(r.alpha, r.seed) for r in recipes] == [(0, 0), (0, 1), (0, 2), (0.75, 0), (0.75, 1), (0.75, 2)]
    assert {(r.dim, r.lr, r.epochs) for r in recipes} == {(8, 0.001, 200)}


def test_what_is_given_with_the_command_overrides_the_file(load):
    recipes = load("dataset: [demo, stsb]\nalpha: [0, 1]\n", dataset="elsewhere")
    assert [(r.dataset, r.alpha) for r in recipes] == [("elsewhere", 0), ("elsewhere", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("- 1\n", "is not a mapping"),
        ("alpha: [0\n", "can't be read as YAML"),
        ("alhpa: [0]\n", "'alhpa' is not a field of the recipe (did you mean 'alpha'?); the fields are alpha, dim"),
        ("alpha: []\n", "alpha has no value"),
        ("alpha: [0, -1]\n", "alpha must be a finite number of at least 0, not -1"),
        ("alpha: [0, .nan]\n", "alpha must be a finite number"),
        ("alpha: [0, yes]\n", "alpha must be a finite number of at least 0, not True"),
        ("alpha: [[0]]\n", "alpha must be"),
        ("alpha:\n", "alpha must be"),
        ("alpha: [0.5, 0.50]\n", "alpha has the same value twice"),
        (f"seed: {list(range(1000))}\nalpha: [0, 1, 2]\n", "3,000 combinations are more than 2,000"),
    ],
)
def test_what_is_no_grid_is_refused(load, text, message):
    refused = refusal(load, text)
    assert message in refused
    assert "grid.yaml" in refused


def test_a_grid_that_is_not_there_or_not_text_is_refused(tmp_path):
    absent = refusal(load_grid, "absent.yaml")
    assert "'absent.yaml' not found: pass a YAML file, or one of best, best-16, " in absent
    assert "not found (did you mean 'published'?)" in refusal(load_grid, "publshed")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "can't be read as YAML" in refusal(load_grid, str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize(("name", "count"), [("neftune", 90), ("published", 25), ("dimensions", 50), ("quick", 4)])
def test_the_projects_grids(name, count):
    assert len(load_grid(name)) == count
    assert load_grid(name) == load_grid(str(ROOT / "experiments" / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.0, "3"), (2e-4, "0.0002"), (1e-5, "1e-05"), (32, "32"), (True, "true"), ("1.0", "1.0")],
)
def test_values_are_logged_in_their_shortest_spelling(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (Recipe(), "mlp32-a0.75-s0"),
        (Recipe(lr=1e-3, init="random", epochs=3), "mlp32-a0.75-s0-epochs3-lr0.001"),
        (Recipe(architecture="linear", quantizer="sign", init="pca"), "linear32-sign-a0.75-s0-init_pca"),
        (Recipe.preset("best", encoder="other", device="cpu"), "best-a0-s0"),
        (Recipe.preset("best", alpha=2, seed=1, lr_schedule="cosine"), "best-a2-s1-lr_schedule_cosine"),
        (Recipe.preset("search-16", quantizer="none"), "search-16-a0-s0-quantizer_none"),
    ],
)
def test_names_tell_the_nearest_preset_and_what_differs_from_it(recipe, name):
    assert recipe.name == name
