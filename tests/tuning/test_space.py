"""Search spaces of files and of the package."""

import json

import pytest

from tests.helpers.refusals import refusal
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import NEIGHBORS, RETRIEVAL, SIMILARITY, TASKS
from twinsqueeze.tuning.space import Range, load_space, packaged_spaces

LR = {"low": 0.001, "high": 0.01}


@pytest.fixture
def load(tmp_path):
    """Writes a space into a file and loads it."""

    def load_from_file(content, task=NEIGHBORS, **overrides):
        path = tmp_path / "space.yaml"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_space(str(path), task, **overrides)

    return load_from_file


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
@pytest.mark.parametrize("name", packaged_spaces())
def test_a_packaged_space_starts_from_a_preset_of_its_size_for_the_task(name, task):
    space = load_space(name, task)
    space.start.check_task(task, "data")
    assert space.start.bytes_per_vector == {"floats": 128, "32-bytes": 32, "16-bytes": 16}[name]
    assert space.start_params().keys() == space.parameters.keys()
    assert space.make_recipe(space.start_params()) == space.start
    for parameter, values in space.parameters.items():
        for choice in [] if isinstance(values, Range) else values:
            assert space.make_recipe({parameter: choice}).bytes_per_vector == space.start.bytes_per_vector, parameter


def test_a_file_gives_the_start_recipe_and_what_varies(load):
    shapes = [{"dim": 64, "subvector_dim": 4}, {"dim": 128, "subvector_dim": 8}]
    search = {"lr": LR | {"log": True}, "num_neighbors": {"low": 0, "high": 7, "step": 2}, "shape": shapes}
    space = load({"recipe": "vectors", "epochs": 3, "dim": 64, "subvector_dim": 4, "search": search})
    assert space.start == Recipe.preset("vectors", epochs=3, dim=64, subvector_dim=4)
    assert space.parameters["lr"] == Range(0.001, 0.01, log=True)
    assert space.parameters["num_neighbors"].values() == [0, 2, 4, 6]
    assert space.start_params() == {"lr": 0.004, "num_neighbors": 2, "shape": "dim 64, subvector_dim 4"}
    recipe = space.make_recipe({"lr": 0.00123456, "shape": "dim 128, subvector_dim 8"}, seed=5)
    assert recipe == space.start.model_copy(update={"lr": 0.00123, "dim": 128, "subvector_dim": 8, "seed": 5})


def test_the_combinations_of_a_space_without_continuous_ranges_are_counted(load):
    search = {"alpha": {"low": 0, "high": 1, "step": 0.5}, "epochs": [1, 2], "loss": ["mse", "pearson"]}
    space = load({"search": search}, SIMILARITY)
    assert space.combinations(11) is None
    combinations = space.combinations(12)
    assert [each["alpha"] for each in combinations[::4]] == [0, 0.5, 1]
    assert len({tuple(each.values()) for each in combinations}) == 12
    assert load({"search": search | {"lr": LR}}, SIMILARITY).combinations(10**9) is None


def test_a_section_is_for_one_kind_of_data(load):
    sections = {"neighbors": {"recipe": "vectors", "search": {"lr": LR}}}
    assert load(sections).preset == "vectors"
    assert "has nothing for queries with passages: add a section 'retrieval'" in refusal(load, sections, RETRIEVAL)


def test_values_of_the_command_replace_those_of_the_file(load):
    assert load({"dataset": "demo", "search": {"lr": LR}}, SIMILARITY, dataset="mine").start.dataset == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: map `search` to fields"),
        ("- 1", "is not a mapping: map `search` to fields"),
        ("a: [", "can't be read as YAML"),
        ({"lr": 1}, "nothing is searched"),
        ({"search": {}}, "nothing is searched"),
        ({"search": ["lr"]}, "nothing is searched"),
        ({"recipe": "bset", "search": {"lr": LR}}, "recipe must be one of published, best"),
        ({"epoch": 3, "search": {"lr": LR}}, "'epoch' is not a field of the recipe (did you mean 'epochs'?)"),
        ({"search": {"ls": LR}}, "'ls' is not a field of the recipe"),
        ({"search": {"lr": 3}}, "lr must be a list of choices, or {low: ..., high: ...}, not 3"),
        ({"search": {"lr": []}}, "lr must be a list of choices"),
        ({"search": {"lr": {"low": 1}}}, "lr must have low and high, and may have log and step"),
        ({"search": {"lr": LR | {"max": 1}}}, "lr must have low and high, and may have log and step"),
        ({"search": {"lr": {"low": 1, "high": 0.1}}}, "low of lr must be below high, not 1 and 0.1"),
        ({"search": {"lr": {"low": -1, "high": 1}}}, "lr must be a finite number above 0, not -1"),
        (
            {"search": {"epochs": {"low": 1.5, "high": 3}}},
            "epochs must be a whole number of at least 1, or 0 with a base, not 1.5",
        ),
        ({"search": {"lr": LR | {"log": "x"}}}, "log of lr must be true or false, not 'x'"),
        ({"search": {"alpha": {"low": 0, "high": 1, "log": True}}}, "log of alpha needs low above 0"),
        ({"search": {"lr": LR | {"log": True, "step": 0.001}}}, "log of lr needs no step"),
        ({"search": {"lr": LR | {"step": 0}}}, "step of lr must be a number above 0, at most high - low, not 0"),
        ({"search": {"epochs": {"low": 1, "high": 9, "step": 0.5}}}, "step of epochs must be a whole number"),
        ({"search": {"loss": LR}}, "loss must be mse, pearson, infonce or none"),
        ({"search": {"loss": {"low": "mse", "high": "none"}}}, "loss has no range, since it is not a number"),
        ({"search": {"loss": ["mse", "mae"]}}, "loss must be mse, pearson, infonce or none, not 'mae'"),
        ({"search": {"epochs": [2, 2]}}, "epochs has the same choice twice: 2, 2"),
        ({"search": {"a": [{"dim": 8}, {"epochs": 8}]}}, "the choices of a must set the same fields"),
        ({"search": {"a": [{"dim": 8}], "dim": [8, 9]}}, "dim is searched twice, by a and dim"),
        ({"search": {"seed": [0, 1]}}, "seed can't be searched"),
        ({"search": {"base": ["a", "b"]}}, "base can't be searched"),
        ({"base": "RUN_ID", "search": {"lr": LR}}, "a search starts from a preset, not from a base: leave base out"),
        ({"search": {"quantizer": ["none", "product"]}}, "quantizer must be none or sign, or product for a linear"),
    ],
)
def test_what_is_wrong_with_a_space_is_said_in_one_line(load, content, message):
    refused = refusal(load, content)
    assert refused.startswith("space '")
    assert message in refused


def test_a_space_that_does_not_exist_names_those_that_do():
    assert refusal(load_space, "32-byte", NEIGHBORS) == (
        "space '32-byte' not found (did you mean '32-bytes'?): pass a YAML file, or one of 16-bytes, 32-bytes, floats"
    )


def test_dimensions_beyond_those_of_the_encoder_are_refused(load):
    space = load({"dim": 8, "search": {"dim": [8, 40]}}, SIMILARITY)
    space.validate_dim(40)
    assert refusal(space.validate_dim, 39) == "dim must be at most 39, the dimension of the encoder, not 40"
