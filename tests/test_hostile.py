"""Readers of files and names on random and malicious input: a valid result, or an `InputError` of one line."""

import contextlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from benchmarks import fuzz
from tests.helpers.refusals import refusal
from tests.helpers.tables import read_rows, write_frame
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import SUFFIXES, load_pairs
from twinsqueeze.data.table_files import FORMATS
from twinsqueeze.errors import InputError, truncate_repr
from twinsqueeze.grid import load_grid
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry.model_loader import resolve_model
from twinsqueeze.utils.text import escape_control_chars

# The same inputs each time, so that a test fails only after a change. `benchmarks.fuzz` looks for new ones.
tried = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
anything = st.text(st.characters(codec=None), max_size=300)
names = anything | st.sampled_from(
    ["~nobody/x", "a" * 300, "\0", "..", "../..", "\udcff", "/proc/self/mem", "//", "a\nb"]
)
scalars = st.integers() | st.floats() | st.booleans() | st.none() | anything
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(anything, inner), max_leaves=9)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Names must not lead to files: the working directory and two folders above it are empty."""
    folder = tmp_path / "in" / "it"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


any_bytes = st.binary(max_size=200) | anything.map(lambda text: text.encode("utf-8", "surrogatepass"))
# The first byte of what is read as pairs or vectors is the number of a format.
TSV_PAIRS = ("pairs", b"\1")  # there is no sample
TARGETS = [("grids", b""), ("checkpoints", b"")]
TARGETS += [("pairs", bytes([number])) for number in range(len(SUFFIXES))]
TARGETS += [("vectors", bytes([number])) for number in range(len(FORMATS))]


@pytest.mark.parametrize(("target", "format_"), TARGETS)
@settings(tried, max_examples=30)
@given(data=any_bytes, edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6))
def test_any_bytes_are_read_or_refused(tmp_path, target, format_, data, edits):
    read = fuzz.TARGETS[target]
    read(format_ + data, tmp_path)
    for sample in fuzz.samples(target):
        if sample.startswith(format_) or (target, format_) == TSV_PAIRS:
            damaged = bytearray(sample[len(format_) :])
            for place, byte in edits:
                damaged[place % len(damaged)] = byte
            read(format_ + damaged, tmp_path)


@tried
@given(st.dictionaries(st.sampled_from([*Recipe.model_fields, "x"]), values | st.lists(values), max_size=4))
def test_any_mapping_is_a_grid_or_refused(tmp_path, content):
    fuzz.grids(json.dumps(content).encode("utf-8", "surrogatepass"), tmp_path)  # JSON is YAML


# Each letter doubles the size.
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{c}: &{c} {{<<: [*{p}, *{p}]}}\n" for p, c in pairwise("abcdefghijklmnopqrstuvwxyz")
)


@pytest.mark.parametrize(
    "text",
    [
        *("alpha: !!int ''", "alpha: !!bool x", "alpha: !!timestamp x", "alpha: !!python/name:os.system"),
        *("alpha: 0x" + "f" * 5000, "[" * 1000, MERGES, "alpha: &x [*x]", "seed: [" + "1," * 100_000 + "]"),
    ],
    ids=["empty int", "no bool", "no time", "a function", "digits", "deep", "merges of merges", "in itself", "long"],
)
def test_malicious_yaml_grids_are_refused(text, tmp_path):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(InputError, match="alias" if "*" in text else "grid "):
        load_grid(str(tmp_path / "grid.yaml"))


@tried
@given(names)
def test_any_name_is_found_or_refused(name):
    uris = (f"models:/{name}", f"runs:/{name}", f"runs:/{'0' * 32}/{name}", f"models:/{name}/1", f"models:/x@{name}")
    for read in (load_grid, load_pairs, read_rows, resolve_model, resolve_encoder):
        refusal(read, name)
    for uri in uris:
        refusal(resolve_model, uri)
    with contextlib.suppress(InputError):
        Recipe.parse({"alpha": name, "dataset": name, "encoder": name, "device": name})


# All that a CSV file can hold. A carriage return may be the end of a line.
sentence = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1).filter(
    lambda text: text.strip()
)


@settings(tried, max_examples=25)
@given(st.lists(st.tuples(sentence, sentence, st.floats(0, 5)), min_size=1, max_size=5), st.sampled_from(SUFFIXES))
def test_any_text_comes_back_as_it_was(tmp_path, rows, suffix):
    rows = [*rows, ("a", "b", 5.0), ("c", "d", 0.0)]
    frame = pd.DataFrame(rows, columns=["sentence1", "sentence2", "score"])
    for old in tmp_path.glob("train.*"):
        old.unlink()
    write_frame(frame, tmp_path / f"train{suffix}")
    read = load_pairs(str(tmp_path), splits=["train"]).splits["train"]
    assert list(zip(read.sentence1, read.sentence2, strict=True)) == [row[:2] for row in rows]
    assert read.scores == pytest.approx([row[2] for row in rows], abs=1e-9)


@pytest.mark.parametrize("folder", ["da*", "d?ta", "[d]ata", "file::data", "data\x1b[31m"])
def test_the_name_of_a_folder_is_not_a_pattern(tmp_path, folder):
    for name, text in (("data", "wrong"), (folder, "right")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text(f"{fuzz.HEAD}{text},b,0\n{text},d,5\n")
    data = load_pairs(str(tmp_path / folder), splits=["train"])
    assert data.splits["train"].sentence1 == ("right", "right")
    assert data.name.isprintable()


def test_a_score_of_400_digits_is_refused(tmp_path):
    line = '{"sentence1": "a", "sentence2": "b", "score": %d}\n'
    (tmp_path / "train.jsonl").write_text(line % 10**400 + line % 1)
    assert "is not a finite number" in refusal(load_pairs, str(tmp_path), splits=["train"])


LAYER = {"0.weight": (4, 4), "0.bias": (4,)}


def ones(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "shapes",
    [
        {"0.weight": (0, 4), "0.bias": (0,)},
        *(LAYER | {"codebooks": shape} for shape in ((1, 8, 3), (3, 8, 2), (1, 300, 4), (1, 0, 4), (1, 4))),
        LAYER | {"²weight": (1, 4)},
    ],
)
def test_tensors_and_ranges_that_do_not_fit_are_refused(tmp_path, shapes):
    file = tmp_path / "compressor.safetensors"
    file.write_bytes(save(ones(shapes)))
    assert "contains no compressor" in refusal(read_checkpoint, file, "model")
    metadata = json.loads(fuzz.PROVENANCE) | {"int8_ranges": [[0.0], [1.0]]}
    file.write_bytes(save(ones(LAYER), {"twinsqueeze": json.dumps(metadata)}))
    assert "int8 ranges" in refusal(read_checkpoint, file, "model")


@pytest.mark.parametrize("name", ["compressor.safetensors", "README.md", "1_Dense"])
def test_links_out_of_the_folder_of_a_model_are_refused(tmp_path, name):
    """An export would copy their targets."""
    folder, secret = tmp_path / "model", tmp_path / "secret"
    (secret / "x").mkdir(parents=True)
    (secret / "file").write_bytes(save(ones(LAYER)))
    folder.mkdir()
    (folder / "compressor.safetensors").write_bytes(save(ones(LAYER)))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret / ("x" if name == "1_Dense" else "file"))
    message = refusal(resolve_model, str(folder))
    assert message.startswith(f"{name} of model ")
    assert " is a link out of the folder" in message


def test_links_to_the_blobs_of_the_hubs_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "4567").write_bytes(save(ones(LAYER)))
    (snapshot / "compressor.safetensors").symlink_to(Path("..", "..", "blobs", "4567"))
    assert resolve_model(str(snapshot)).checkpoint.name == "compressor.safetensors"


@tried
@given(values, anything)
def test_any_value_and_name_is_shown_without_control_characters(value, name):
    shown = truncate_repr(value)
    assert shown.isprintable()
    assert len(shown) <= 100
    escaped = escape_control_chars(name)
    assert escaped.isprintable()
    assert escape_control_chars(escaped) == escaped


def test_a_value_of_2_to_the_200_parts_is_shown_in_one_line():
    value: list = ["x"]
    for _ in range(200):
        value = [value] * 2
    assert len(truncate_repr(value)) <= 100
