"""Whatever reads files or names, on what nobody sane would write."""

import contextlib
import io
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from benchmarks import fuzz
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.data.sentence_pairs import SUFFIXES, load_pairs
from twinsqueeze.errors import InputError, truncate_repr
from twinsqueeze.grid import load_grid
from twinsqueeze.inference.readers import FORMATS, read_blocks
from twinsqueeze.model.checkpoint import read_checkpoint
from twinsqueeze.recipe import Recipe
from twinsqueeze.registry import model_loader
from twinsqueeze.utils.text import escape_control_chars

# The same inputs every time: a test must not fail for who did not touch it. `benchmarks.fuzz` looks for new ones.
tried = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
anything = st.text(st.characters(codec=None), max_size=300)
names = anything | st.sampled_from(
    ["~nobody/x", "a" * 300, "\0", "..", "../..", "\udcff", "/proc/self/mem", "//", "a\nb"]
)
numbers = st.integers() | st.floats() | st.booleans() | st.none()
values = st.recursive(
    numbers | anything, lambda inner: st.lists(inner) | st.dictionaries(anything, inner), max_leaves=9
)


def spoilt(good: bytes, edits) -> bytes:
    """A file with some bytes changed, and cut."""
    data = bytearray(good)
    for place, byte in edits:
        data[place % len(data)] = byte
    return bytes(data)


def read_all(source: str) -> None:
    """Reads vectors or texts to their end."""
    for block in read_blocks(source):
        np.array(block.rows)


edits = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory with nothing in it or two folders above it, which names can lead to; a store of its own."""
    folder = tmp_path / "in" / "it"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@tried
@given(st.binary() | anything.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_grid_or_refused(tmp_path, data):
    fuzz.grids(data, tmp_path)


@tried
@given(st.dictionaries(st.sampled_from([*Recipe.model_fields, "x"]), values | st.lists(values), max_size=4))
def test_any_mapping_is_a_grid_or_refused(tmp_path, content):
    fuzz.grids(json.dumps(content).encode("utf-8", "surrogatepass"), tmp_path)  # JSON is YAML


# Twice as much with each letter.
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{c}: &{c} {{<<: [*{p}, *{p}]}}\n" for p, c in pairwise("abcdefghijklmnopqrstuvwxyz")
)


@pytest.mark.parametrize(
    "text",
    [
        "alpha: !!int ''",
        "alpha: !!bool x",
        "alpha: !!timestamp x",
        "alpha: !!python/name:os.system",
        "alpha: 0x" + "f" * 5000,
        "[" * 5000,
        MERGES,
        "alpha: &x [*x]",
        "seed: [" + "1," * 100_000 + "]",
    ],
    ids=["empty int", "no bool", "no time", "a function", "digits", "deep", "merges of merges", "in itself", "long"],
)
def test_grids_that_yaml_stumbles_over_are_refused(text, tmp_path):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(InputError, match="alias" if "*" in text else "grid "):
        load_grid(str(tmp_path / "grid.yaml"))


@tried
@given(names)
def test_any_name_is_found_or_refused(name):
    """Of a grid, data, vectors, a model, an encoder."""
    for find in (load_grid, load_pairs, read_all, model_loader.resolve_model, resolve_encoder):
        with pytest.raises(InputError) as refused:
            find(name)
        assert "\n" not in str(refused.value)
    with contextlib.suppress(InputError):
        Recipe.parse({"alpha": name, "dataset": name, "encoder": name, "device": name})


@tried
@given(names)
def test_any_uri_of_a_model_is_refused(name):
    for uri in (
        f"models:/{name}",
        f"runs:/{name}",
        f"runs:/{'0' * 32}/{name}",
        f"models:/{name}/1",
        f"models:/x@{name}",
    ):
        with pytest.raises(InputError):
            model_loader.resolve_model(uri)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(tried, max_examples=25)
@given(data=st.binary(max_size=200), edits=edits)
def test_any_bytes_are_pairs_or_refused(tmp_path, suffix, data, edits):
    good = next(s[1:] for s in fuzz.samples("pairs") if SUFFIXES[s[0]] == (".csv" if suffix == ".tsv" else suffix))
    fuzz.pairs(data, tmp_path, suffix)
    fuzz.pairs(spoilt(good, edits), tmp_path, suffix)


# Whatever a CSV file can hold; a carriage return is a line's end to some.
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
    file = tmp_path / f"train{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(file)
    elif suffix == ".jsonl":
        frame.to_json(file, orient="records", lines=True, double_precision=15)
    else:
        frame.to_csv(file, index=False, sep="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    read = load_pairs(str(tmp_path), splits=["train"]).splits["train"]
    assert list(zip(read.sentence1, read.sentence2, strict=True)) == [row[:2] for row in rows]
    assert read.scores == pytest.approx([row[2] for row in rows], abs=1e-9)


@pytest.mark.parametrize("folder", ["da*", "d?ta", "[d]ata", "file::data", "data\x1b[31m"])
def test_a_folders_name_is_no_pattern(tmp_path, folder):
    for name, text in (("data", "theirs"), (folder, "mine")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text(f"{fuzz.HEAD}{text},b,0\n{text},d,5\n")
    data = load_pairs(str(tmp_path / folder), splits=["train"])
    assert data.splits["train"].sentence1 == ("mine", "mine")
    assert data.name.isprintable()


def test_a_score_of_many_digits_and_a_scale_of_none_are_refused(tmp_path):
    pq.write_table(
        pa.table({"sentence1": ["a", "c"], "sentence2": ["b", "d"], "score": ["1" + "0" * 400, "1"]}),
        tmp_path / "train.parquet",
    )
    with pytest.raises(InputError, match="not a finite number"):
        load_pairs(str(tmp_path), splits=["train"])
    with pytest.raises(InputError, match="score_max must be"):
        load_pairs("demo", score_max=math.ulp(0))


@pytest.mark.parametrize("suffix", FORMATS)
@settings(tried, max_examples=60)
@given(data=st.binary(max_size=200), edits=edits)
def test_any_bytes_are_vectors_or_refused(tmp_path, suffix, data, edits):
    good = [s[1:] for s in fuzz.samples("vectors") if FORMATS[s[0]] == suffix]
    fuzz.vectors(data, tmp_path, suffix)
    for sample in good:
        fuzz.vectors(spoilt(sample, edits), tmp_path, suffix)


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(100)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)",
        "-" * 3000 + "1",
        "  1\n 2",
        *(
            f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}"
            for descr, fortran, shape in [
                ("'<f4'", False, "(-1, 3)"),
                ("'<f4'", True, "(-2, 3)"),
                ("'<f4'", False, f"({10**30}, 0)"),  # for ever nothing
                ("'<f4'", False, f"({10**30}, 1)"),
                ("'<f4'", False, f"(1, {10**30})"),
                ("'|O'", False, "(2, 3)"),
                ("[]", True, "(2, 3)"),
            ]
        ),
    ],
)
def test_headers_that_numpy_stumbles_over_are_refused(tmp_path, header):
    file = tmp_path / "vectors.npy"
    file.write_bytes(npy(header))
    with pytest.raises(InputError):
        read_all(str(file))


def test_a_header_on_standard_input_can_not_claim_the_memory(monkeypatch):
    """It has no size to hold the header against."""
    header = npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': (2, {10**14})}}")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(header))))
    with pytest.raises(InputError, match="too large to read"):
        read_all("-")


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, f"[1{'0' * 400}]", '"\\ud800"', '{"a": ' * 50_000],
    ids=["deep", "digits", "half a pair", "deep keys"],
)
def test_lines_that_json_stumbles_over_are_refused(tmp_path, line):
    file = tmp_path / "vectors.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(InputError, match="can't be read as jsonl"):
        read_all(str(file))


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    offsets = pa.py_buffer(np.array([0, 1, 2], np.int32).tobytes())
    pq.write_table(
        pa.table({"text": pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"\xff\xfe"))}), tmp_path / "x.parquet"
    )
    with pytest.raises(InputError, match="is damaged"):
        read_all(str(tmp_path / "x.parquet"))


@tried
@given(data=st.binary(max_size=200), edits=edits)
def test_any_bytes_are_a_compressor_or_refused(tmp_path, data, edits):
    fuzz.checkpoints(data, tmp_path)
    for good in fuzz.samples("checkpoints"):
        fuzz.checkpoints(spoilt(good, edits), tmp_path)


LAYER = {"0.weight": np.ones((4, 4), np.float32), "0.bias": np.ones(4, np.float32)}


@pytest.mark.parametrize(
    "tensors",
    [
        {"0.weight": np.ones((0, 4), np.float32), "0.bias": np.ones(0, np.float32)},
        {**LAYER, "codebooks": np.ones((1, 8, 3), np.float32)},
        {**LAYER, "codebooks": np.ones((2, 8, 4), np.float32)},
        {**LAYER, "codebooks": np.ones((1, 300, 4), np.float32)},
        {**LAYER, "codebooks": np.ones((1, 0, 4), np.float32)},
        {**LAYER, "codebooks": np.ones((1, 4), np.float32)},
        {**LAYER, "²weight": np.ones((1, 4), np.float32)},
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, tensors):
    file = tmp_path / "compressor.safetensors"
    file.write_bytes(save(tensors))
    with pytest.raises(InputError, match="contains no compressor"):
        read_checkpoint(file, "model")


def test_ranges_of_other_numbers_are_refused(tmp_path):
    about = json.loads(fuzz.PROVENANCE) | {"int8_ranges": [[0.0], [1.0]]}
    file = tmp_path / "compressor.safetensors"
    file.write_bytes(save(LAYER, {"twinsqueeze": json.dumps(about)}))
    with pytest.raises(InputError, match="int8 ranges"):
        read_checkpoint(file, "model")


@pytest.mark.parametrize("name", ["compressor.safetensors", "README.md", "1_Dense"])
def test_a_models_files_do_not_lead_out_of_its_folder(tmp_path, name):
    """An export would copy them to where others read them."""
    folder, secret = tmp_path / "model", tmp_path / "secret"
    (secret / "x").mkdir(parents=True)
    (secret / "file").write_bytes(save(LAYER))
    folder.mkdir()
    (folder / "compressor.safetensors").write_bytes(save(LAYER))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret / ("x" if name == "1_Dense" else "file"))
    with pytest.raises(InputError, match=f"{name} of model .* is a link out of the folder"):
        model_loader.resolve_model(str(folder))


def test_the_hubs_cache_may_link_to_its_own_blobs(tmp_path):
    """Its snapshots are links, and a model that was downloaded lies there."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "4567").write_bytes(save(LAYER))
    (snapshot / "compressor.safetensors").symlink_to(Path("..", "..", "blobs", "4567"))
    assert model_loader.resolve_model(str(snapshot)).checkpoint.name == "compressor.safetensors"


@tried
@given(values)
def test_a_value_is_shown_in_a_line(value):
    text = truncate_repr(value)
    assert text.isprintable()
    assert len(text) <= 100


def test_a_nested_value_is_shown_without_writing_it_all():
    value: list = ["x"]
    for _ in range(200):
        value = [value, value]
    assert len(truncate_repr(value)) <= 100


@tried
@given(anything)
def test_a_name_is_shown_without_commands_to_the_terminal(text):
    assert escape_control_chars(text).isprintable()
    assert escape_control_chars(escape_control_chars(text)) == escape_control_chars(text)
