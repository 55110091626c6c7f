"""The command compress: files in all forms, what is refused, what an interruption and a full disk leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from torch import nn

import twinsqueeze
from tests.helpers.disks import on_a_disk
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.inference import readers
from twinsqueeze.model.checkpoint import CheckpointMetadata, serialize_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import random_orthogonal_layer
from twinsqueeze.model.quantizers import ProductQuantizer, fit_codebooks
from twinsqueeze.recipe import Recipe

ROWS = 9_001  # three blocks, the last of which has few rows and not a multiple of 16
TEXTS = ["a cat sleeps", 'she said "no, thanks"', "", "naïve café, 東京", "two men are\u2028playing chess"]


@pytest.fixture(scope="module")
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(384, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 12)).eval()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(ROWS, 384))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(network, vectors) -> np.ndarray:
    """By PyTorch's own modules."""
    with torch.inference_mode():
        return nn.functional.normalize(network(torch.from_numpy(vectors)), dim=1).numpy()


@pytest.fixture(scope="module")
def ranges(expected) -> np.ndarray:
    return np.array([expected[:5000].min(0), expected[:5000].max(0)])


def _codes(known: dict) -> bytes:
    """What a training of product codes writes."""
    layers = random_orthogonal_layer((384, 16), np.random.default_rng(0), None)
    begun = CompressorNetwork([layers]).compress(torch.randn(3000, 384, generator=torch.Generator().manual_seed(0)))
    quantiser = ProductQuantizer(fit_codebooks(begun.numpy(), 8, 0)[None])
    recipe = Recipe(dim=16, architecture="linear", subvector_dim=8, quantizer="product")
    return serialize_checkpoint(
        CompressorNetwork([layers], quantiser), CheckpointMetadata(**{**known, "recipe": recipe})
    )


@pytest.fixture(scope="module")
def models(network, ranges, tmp_path_factory):
    """Folders with what a training writes, what it wrote before there were ranges, and what another program does."""
    folder = tmp_path_factory.mktemp("models")
    compressor = CompressorNetwork.from_state_dict(network.state_dict())
    known = {
        "recipe": Recipe(dim=12),
        "dataset": "demo",
        "dataset_digest": "0",
        "score_max": None,
        "encoder_fingerprint": resolve_encoder("all-MiniLM-L6-v2").fingerprint,
        "version": twinsqueeze.__version__,
    }
    files = {
        "codes": _codes(known),
        "trained": serialize_checkpoint(compressor, CheckpointMetadata(**known, int8_ranges=ranges.tolist())),
        "older": serialize_checkpoint(compressor, CheckpointMetadata(**known)),
        "foreign": serialize_checkpoint(compressor, None),
    }
    for name, content in files.items():
        (folder / name).mkdir()
        (folder / name / "compressor.safetensors").write_bytes(content)
    return folder


@pytest.fixture
def compress(run_here, workplace, models):
    """Compresses a file of the workplace; gives what came out, and standard error."""

    def run(name: str, *arguments: str, output: str = "out.npy", model: str = "trained"):
        code, _, err = run_here(
            "compress", "--input", name, "--model", str(models / model), "--output", output, *arguments
        )
        assert code == 0, err
        assert [p.name for p in workplace.folder.iterdir() if ".part" in p.name] == []
        return np.load(workplace.folder / output), err

    return run


@pytest.fixture
def refuse(run_here, workplace, models):
    """Expects a refusal in one line that leaves the folder as it was; gives the line."""

    def run(name: str, *arguments: str, output: str = "out.npy", model: str = "trained") -> str:
        before = {p.name: p.stat().st_mtime_ns for p in workplace.folder.iterdir()}
        code, out, err = run_here(
            "compress", "--input", name, "--model", str(models / model), "--output", output, *arguments
        )
        assert (code, out) == (2, "")
        assert {p.name: p.stat().st_mtime_ns for p in workplace.folder.iterdir()} == before
        *progress, line = err.splitlines()
        assert all(line.startswith("compressing") or "cast" in line for line in progress)
        assert line.startswith("twinsqueeze: ")
        return line

    return run


def write(path, array: np.ndarray, name: str) -> None:
    """The same vectors in every form, by programs of others."""
    if name.endswith(".npy"):
        np.save(path / name, array)
    elif name.endswith(".parquet"):
        table = pa.table({"id": range(len(array)), "embedding": list(array), "title": ["x"] * len(array)})
        pq.write_table(table, path / name, row_group_size=2000)
    elif name.endswith(".csv"):
        np.savetxt(path / name, array, delimiter=",", fmt="%.9g")
    else:
        pd.DataFrame({"id": range(len(array)), "vector": list(array.astype(float))}).to_json(
            path / name, orient="records", lines=True, double_precision=15
        )


@pytest.mark.parametrize("name", ["in.npy", "in.parquet", "in.csv", "in.jsonl"])
def test_vectors_of_every_form_give_what_pytorch_gives(compress, workplace, vectors, expected, name):
    rows = ROWS if name in {"in.npy", "in.parquet"} else 700
    write(workplace.folder, vectors[:rows], name)
    found, _ = compress(name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[:rows], atol=1e-6)


def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(compress, workplace, vectors):
    np.save(workplace.folder / "all.npy", vectors)
    whole, _ = compress("all.npy", output="all-out.npy")
    for name, rows in (("one.npy", slice(8_999, 9_000)), ("some.npy", slice(4_000, 4_103))):
        np.save(workplace.folder / name, vectors[rows])
        found, _ = compress(name, output=f"out-{name}")
        np.testing.assert_array_equal(found, whole[rows])


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
@pytest.mark.parametrize("precision", ["float32", "int8", "binary", "ubinary"])
def test_precisions_are_sentence_transformers_own(run_here, workplace, models, vectors, ranges, precision, output):
    from sentence_transformers.util.quantization import quantize_embeddings

    np.save(workplace.folder / "in.npy", vectors)
    code, out, err = run_here(
        *("compress", "--input", "in.npy", "--model", str(models / "trained"), "--output", output),
        *("--precision", precision),
    )
    assert code == 0, err
    bytes_ = {"float32": 48, "int8": 12}.get(precision, 2)
    assert f"9,001 rows of in.npy compressed to 12 numbers at {precision}, {bytes_} bytes each" in out
    if output.endswith(".npy"):
        found = np.load(workplace.folder / output)
    else:
        table = pq.read_table(workplace.folder / output)
        found = np.stack(table["vector"].to_numpy())
        assert json.loads(table.schema.metadata[b"twinsqueeze"])["precision"] == precision
    (workplace.folder / output).unlink()
    code, _, _ = run_here("compress", "--input", "in.npy", "--model", str(models / "trained"), "--output", "float.npy")
    given = np.load(workplace.folder / "float.npy")
    theirs = quantize_embeddings(given, precision, ranges=ranges.astype(np.float32))
    assert found.dtype == theirs.dtype
    np.testing.assert_array_equal(found, theirs)


def test_the_input_is_never_the_output(refuse, workplace, vectors):
    np.save(workplace.folder / "in.npy", vectors[:10])
    line = refuse("in.npy", "--overwrite", "true", output="in.npy")
    assert "output 'in.npy' is the input: name another file" in line
    np.testing.assert_array_equal(np.load(workplace.folder / "in.npy"), vectors[:10])


def test_a_model_of_product_codes_gives_what_faiss_searches(compress, workplace, vectors, models):
    """Without a precision, what it was trained as; in FAISS, an index with the codebooks that travel with the model."""
    np.save(workplace.folder / "in.npy", vectors)
    codes, _ = compress("in.npy", model="codes")
    assert (codes.dtype, codes.shape) == (np.uint8, (ROWS, 2))
    unit, _ = compress("in.npy", "--precision", "float32", "--overwrite", "true", model="codes")
    codebooks = load_file(models / "codes" / "compressor.safetensors")["codebooks"]
    parts, centroids, width = codebooks.shape
    index = faiss.IndexPQ(parts * width, parts, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codebooks.ravel(), index.pq.centroids)
    index.is_trained = True
    assert centroids == 256
    np.testing.assert_array_equal(index.sa_encode(unit), codes)
    index.add_sa_codes(codes)
    restored = index.sa_decode(codes)
    similarities, found = index.search(unit[:100], 5)
    cosines = similarities / np.linalg.norm(index.reconstruct_n(0, index.ntotal), axis=1)[found]
    directions = restored / np.linalg.norm(restored, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, np.take_along_axis(unit[:100] @ directions.T, found, 1), atol=1e-5)
    best = np.sort(unit[:100] @ restored.T, 1)[:, -5:]
    np.testing.assert_allclose(np.sort(np.take_along_axis(unit[:100] @ restored.T, found, 1), 1), best, atol=1e-5)


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int32, ">f4"])
def test_other_numbers_are_cast_and_that_is_said_once(compress, workplace, vectors, network, kind):
    given = (vectors * 50).astype(kind)
    np.save(workplace.folder / "in.npy", given)
    found, err = compress("in.npy")
    assert err.count("which are cast to float32") == (np.dtype(kind) != np.dtype(">f4"))
    with torch.inference_mode():
        output = network(torch.from_numpy(given.astype(np.float32)))
    np.testing.assert_allclose(found, nn.functional.normalize(output, dim=1).numpy(), atol=1e-6)


def test_an_array_that_lies_column_by_column(compress, workplace, vectors, expected):
    np.save(workplace.folder / "in.npy", np.asfortranarray(vectors))
    found, _ = compress("in.npy")
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.fixture(scope="module")
def text_vectors(network) -> np.ndarray:
    """By sentence-transformers and PyTorch."""
    model = SentenceTransformer(str(resolve_encoder("all-MiniLM-L6-v2").folder), device="cpu")
    with torch.inference_mode():
        encoded = model.encode(TEXTS, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
        return nn.functional.normalize(network(encoded), dim=1).numpy()


def test_texts_of_every_form_give_what_sentence_transformers_gives(compress, workplace, text_vectors):
    frame = pd.DataFrame({"id": range(len(TEXTS)), "text": TEXTS, "note": "-"})
    (workplace.folder / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    frame.to_csv(workplace.folder / "in.csv", index=False)
    frame.to_parquet(workplace.folder / "in.parquet")
    frame.to_json(workplace.folder / "in.jsonl", orient="records", lines=True, force_ascii=False)
    (workplace.folder / "strings.jsonl").write_text("\n".join(json.dumps(text) for text in TEXTS), encoding="utf-8")
    for name in ("in.txt", "in.csv", "in.parquet", "in.jsonl", "strings.jsonl"):
        column = [] if name in {"in.txt", "strings.jsonl"} else ["--column", "text"]
        found, _ = compress(name, *column, output=f"{name}.npy")
        np.testing.assert_allclose(found, text_vectors, atol=1e-6, err_msg=name)


def test_an_exported_folder_compresses_texts_and_vectors(
    run_here, compress, workplace, models, vectors, expected, text_vectors
):
    code, _, err = run_here("export", "--model", str(models / "trained"), "--output", "exported")
    assert code == 0, err
    (workplace.folder / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS), encoding="utf-8")
    np.save(workplace.folder / "in.npy", vectors[:50])
    for name, there in (("in.txt", text_vectors), ("in.npy", expected[:50])):
        found, _ = compress(name, output=f"{name}-out.npy", model=str(workplace.folder / "exported"))
        np.testing.assert_allclose(found, there, atol=1e-6)


@pytest.mark.parametrize("what", ["npy", *(pytest.param(name, marks=pytest.mark.slow) for name in ("txt", "csv"))])
def test_standard_input(workplace, models, vectors, expected, text_vectors, what):
    if what == "npy":
        np.save(workplace.folder / "in", vectors)
        (workplace.folder / "in.npy").rename(workplace.folder / "in")
    else:
        rows = ["text", *TEXTS] if what == "csv" else TEXTS
        text = "".join('"' + row.replace('"', '""') + '"\n' if what == "csv" else f"{row}\n" for row in rows)
        (workplace.folder / "in").write_text(text, encoding="utf-8")
    with (workplace.folder / "in").open("rb") as file:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "twinsqueeze", "compress", "--input", "-", "--output", "out.npy"),
                *("--model", str(models / "trained"), "--format", "csv" if what == "csv" else "auto"),
            ],
            stdin=file,
            cwd=workplace.folder,
            env=workplace.environment,
            capture_output=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = np.load(workplace.folder / "out.npy")
    np.testing.assert_allclose(found, expected if what == "npy" else text_vectors, atol=1e-6)


def test_a_text_of_a_million_characters_is_cut_as_the_encoder_cuts_and_that_is_said(compress, workplace):
    long = "the cat sat on the mat " * 45_000
    (workplace.folder / "in.txt").write_text(f"short\n{long}\n{' '.join(['cat'] * 254)}\n{' '.join(['cat'] * 255)}\n")
    found, err = compress("in.txt")
    assert err.count("2 texts were cut at the 256 tokens that the encoder takes") == 1
    (workplace.folder / "cut.txt").write_text(f"short\n{long[:3000]}\n")
    cut, err = compress("cut.txt", output="cut.npy")
    assert "1 texts were cut" in err
    np.testing.assert_allclose(found[:2], cut, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("in.npy", {7_003: np.nan}, "row 7003 of in.npy has NaN or infinite numbers"),
        ("in.npy", {8_999: -np.inf, 9_000: np.inf}, "row 8999 of in.npy has NaN"),
        ("in.npy", {5: 3e38}, "row 5 of in.npy is too long a vector"),
        ("in.parquet", {6_003: np.inf}, "row 6003 of in.parquet has NaN or infinite numbers"),
        ("in.csv", {303: np.nan}, "row 303 of in.csv has NaN or infinite numbers"),
    ],
)
def test_vectors_that_are_not_finite_are_refused_with_the_row(refuse, workplace, vectors, name, spoil, message):
    spoilt = vectors[: 500 if name == "in.csv" else ROWS].copy()
    for row, value in spoil.items():
        spoilt[row] = value
    write(workplace.folder, spoilt, name)
    assert message in refuse(name)


def test_large_finite_numbers_are_none_of_these(compress, workplace, vectors):
    """Whose sum over a block is beyond float32."""
    np.save(workplace.folder / "in.npy", np.abs(vectors[:4096]) * np.float32(1e36))
    found, _ = compress("in.npy")
    assert np.isfinite(found).all()


@pytest.mark.parametrize("fault", ["empty", "no rows", "truncated", "short header", "not one"])
@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_files_that_are_empty_or_truncated(refuse, workplace, vectors, kind, fault):
    name = f"in.{kind}"
    write(workplace.folder, vectors[: 0 if fault == "no rows" else 3000], name)
    path = workplace.folder / name
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "truncated":
        os.truncate(path, path.stat().st_size * 2 // 3)
    elif fault == "short header":
        os.truncate(path, 20)
    elif fault == "not one":
        path.write_text("vectors, they said, but it is a letter\n" * 10)
    message = {
        "empty": "is empty",
        "no rows": "neither texts nor lists"
        if kind == "parquet"
        else "is an array of float32 values and of shape (0, 384)",
        "truncated": "truncated",
        "short header": "truncated",
        "not one": f"not a .{kind}",
    }[fault]
    assert message in refuse(name)


def test_a_parquet_file_without_rows(refuse, workplace):
    schema = pa.schema([("vector", pa.list_(pa.float32()))])
    pq.write_table(schema.empty_table(), workplace.folder / "in.parquet")
    assert "in.parquet is empty: it has no rows" in refuse("in.parquet")


def test_a_parquet_file_damaged_in_the_middle(refuse, workplace, vectors):
    pq.write_table(pa.table({"v": list(vectors)}), workplace.folder / "in.parquet", compression="zstd")
    with (workplace.folder / "in.parquet").open("r+b") as file:
        file.seek(500_000)
        file.write(os.urandom(2_000_000))
    assert "in.parquet is damaged" in refuse("in.parquet")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "in.txt", "input 'in.txt' is empty"),
        (b"caf\xe9\n", "in.txt", "in.txt is not UTF-8"),
        (b"a,b\n", "in.csv", "in.csv is empty: it has no rows"),
        (b'text\na\n"b,c\n', "in.csv", "row 1 of in.csv can't be read as csv"),
        (b"a,b\nx y,z\n", "in.csv", "several columns to choose from, a, b: name one"),
        (b"a,b\nx,1\ny\n", "in.csv", "row 1 of in.csv can't be read as csv: 1 cells, and the first line has 2"),
        (b"\n\n", "in.jsonl", "in.jsonl is empty"),
        (b'"a"\n{\n', "in.jsonl", "row 1 of in.jsonl can't be read as jsonl"),
        (b'"a"\n[1, 2]\n', "in.jsonl", "row 1 of in.jsonl is not a text"),
        (b"[%s]\n[1]\n" % b", ".join([b"1"] * 384), "in.jsonl", "row 1 of in.jsonl is not a list of 384 numbers"),
        (
            b'[1, "2"]\n',
            "in.jsonl",
            "row 0 of in.jsonl can't be read as jsonl: [1, '2'] is neither a text nor a list of numbers",
        ),
        (b'{"a": 1}\n', "in.jsonl", "in.jsonl has neither texts nor lists of numbers; its columns are a"),
        (b'{"t": "x"}\n{"u": "y"}\n', "in.jsonl", "row 1 of in.jsonl can't be read as jsonl: no 't' among u"),
        (b"1,2,3\n4,5,6\n", "in.csv", "compresses vectors of 384 numbers, and those of in.csv have 3"),
        (b"x", "in.dat", "ends in none of .npy, .parquet, .csv, .jsonl, .txt: name its format"),
    ],
)
def test_text_files_with_something_wrong(refuse, workplace, content, name, message):
    (workplace.folder / name).write_bytes(content)
    assert message in refuse(name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 100), np.float32), "compresses vectors of 384 numbers, and those of in.npy have 100"),
        (np.zeros(384, np.float32), "of shape (384,): vectors must be the rows of an array of numbers, (n, d)"),
        (np.zeros((3, 384), complex), "in.npy is an array of complex128 values and of shape (3, 384): vectors must be"),
        (np.array([["a"]]), "vectors must be the rows of an array of numbers"),
        (np.array([{}], dtype=object), "in.npy is an array of object values"),
    ],
)
def test_arrays_that_are_no_vectors_for_the_model(refuse, workplace, array, message):
    np.save(workplace.folder / "in.npy", array, allow_pickle=True)
    assert message in refuse("in.npy")


def test_lists_of_other_lengths_in_parquet(refuse, workplace, vectors):
    rows = [list(row) for row in vectors[:50]]
    for name, row in (
        ("short.parquet", rows[0][:-1]),
        ("missing.parquet", None),
        ("hole.parquet", [None, *rows[0][1:]]),
    ):
        pq.write_table(pa.table({"v": pa.array([*rows, row], pa.list_(pa.float32()))}), workplace.folder / name)
        assert f"row 50 of {name} is not a list of 384 numbers" in refuse(name)
    pq.write_table(pa.table({"t": ["a", None]}), workplace.folder / "text.parquet")
    assert "row 1 of text.parquet is missing" in refuse("text.parquet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int4"], "precision must be one of float32, int8, product, binary, ubinary, not 'int4'"),
        (["--format", "xlsx"], "format must be one of auto, npy"),
        (["--column", "x"], "in.npy is a .npy array, which has no column 'x'"),
        (["--device", "gpu"], "device must be auto, cpu or cuda"),
        (["--overwrite=perhaps"], "'perhaps' is not a valid boolean"),
        (["--output", "out.txt"], "output 'out.txt' ends in neither .npy nor .parquet"),
        (["--output", "nowhere/out.npy"], "would be in a folder that does not exist"),
        (["--input", "nowhere.npy"], "input 'nowhere.npy' is not there"),
        (["--input", "."], "input '.' is a folder"),
        (["--model", "nonsense"], "model 'nonsense' not found"),
    ],
)
def test_options_that_can_not_be_used(refuse, workplace, vectors, arguments, message):
    np.save(workplace.folder / "in.npy", vectors[:10])
    assert message in refuse("in.npy", *arguments)


def test_models_that_lack_what_is_needed(refuse, compress, workplace, vectors):
    np.save(workplace.folder / "in.npy", vectors[:10])
    (workplace.folder / "in.txt").write_text("a text\n")
    for model in ("older", "foreign"):
        assert "has no ranges to scale int8 by" in refuse("in.npy", "--precision", "int8", model=model)
        assert "was not trained as product codes" in refuse("in.npy", "--precision", "product", model=model)
    assert "does not record its encoder: name the run that trained it" in refuse("in.txt", model="foreign")
    named, _ = compress("in.txt", "--encoder", "all-MiniLM-L6-v2", model="foreign")
    same, _ = compress("in.txt", output="same.npy")
    np.testing.assert_array_equal(named, same)


def test_an_output_that_is_there_is_refused_unless_overwrite_is_asked_for(refuse, compress, workplace, vectors):
    np.save(workplace.folder / "in.npy", vectors[:100])
    np.save(workplace.folder / "out.npy", np.zeros(3))
    assert "output 'out.npy' exists: name another file, or pass --overwrite" in refuse("in.npy")
    found, _ = compress("in.npy", "--overwrite")
    assert found.shape == (100, 12)
    np.save(workplace.folder / "in.npy", np.full((3, 384), np.nan))
    assert "row 0" in refuse("in.npy", "--overwrite", "true")  # and the old output is still there: refuse looks
    (workplace.folder / "folder.npy").mkdir()
    assert "is a folder" in refuse("in.npy", "--overwrite", "true", output="folder.npy")


# The command with small blocks of texts and a second between blocks.
SLOW_COMPRESS = """
import time
from twinsqueeze import cli
from twinsqueeze.commands import compress
from twinsqueeze.inference import readers
readers.BLOCK_SIZES["texts"] = 8
check_interrupted = compress.check_interrupted
def wait():
    check_interrupted()
    time.sleep(1)
compress.check_interrupted = wait
cli.run()
"""


@pytest.fixture
def start_slowly(workplace, models):
    """Starts a slow compression of a file; gives the process."""

    def start(source: str, output: str, **environment: str) -> subprocess.Popen:
        options = ["--input", source, "--model", str(models / "trained"), "--output", output]
        return subprocess.Popen(
            [sys.executable, "-c", SLOW_COMPRESS, "compress", *options],
            cwd=workplace.folder,
            env=workplace.environment | environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def wait_for(path: Path, pattern: str, process: subprocess.Popen) -> None:
    """Waits until a folder has a file whose name matches."""
    while not any(path.glob(pattern)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
def test_an_interrupted_compression_leaves_no_output(
    start_slowly, compress, workplace, vectors, expected, number, output
):
    np.save(workplace.folder / "in.npy", vectors)
    with start_slowly("in.npy", output) as process:
        wait_for(workplace.folder, "*.part", process)
        process.send_signal(number)
        assert process.wait(30) == (-9 if number == signal.SIGKILL else 128 + number)
    assert not (workplace.folder / output).exists()
    assert any(workplace.folder.glob("*.part")) == (number == signal.SIGKILL)
    (workplace.folder / "out.parquet.part").unlink(missing_ok=True)
    found, _ = compress("in.npy", output="out.npy")  # replaces out.npy.part
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_killed_compression_of_texts_encodes_only_the_rest_when_started_again(
    start_slowly, compress, workplace, monkeypatch
):
    (workplace.folder / "in.txt").write_text("".join(f"{number} men are playing chess\n" for number in range(60)))
    cache = workplace.folder / "cache"
    monkeypatch.setenv("TWINSQUEEZE_CACHE", str(cache))
    finished = f"embeddings-{64 * '?'}"  # without the suffix of files that are being written
    with start_slowly("in.txt", "out.npy", TWINSQUEEZE_CACHE=str(cache)) as process:
        wait_for(cache, finished, process)
        process.kill()
    assert not (workplace.folder / "out.npy").exists()
    cached = len(list(cache.glob(finished)))
    monkeypatch.setitem(readers.BLOCK_SIZES, "texts", 8)
    encoded = []
    encode = SentenceTransformer.encode
    monkeypatch.setattr(
        SentenceTransformer,
        "encode",
        lambda self, texts, **options: encoded.extend(texts) or encode(self, texts, **options),
    )
    found, _ = compress("in.txt")
    assert 1 <= cached < 7
    assert encoded == [f"{number} men are playing chess" for number in range(8 * cached, 60)]
    monkeypatch.setenv("TWINSQUEEZE_CACHE", str(workplace.folder / "other cache"))
    whole, _ = compress("in.txt", output="whole.npy")
    np.testing.assert_array_equal(found, whole)


def test_two_commands_with_one_output(start_slowly, run_here, workplace, models, vectors):
    np.save(workplace.folder / "in.npy", vectors)
    with start_slowly("in.npy", "out.npy") as process:
        wait_for(workplace.folder, "*.part", process)
        command = ["compress", "--input", "in.npy", "--model", str(models / "trained"), "--output", "out.npy"]
        code, _, err = run_here(*command)
        process.kill()
    assert code == 2
    assert "out.npy is being written by another process" in err


@pytest.mark.parametrize(
    ("source", "output", "rows"),
    [
        ("in.npy", "out.npy", 7000),
        ("in.npy", "out.parquet", 7000),
        ("in.jsonl", "out.npy", 7000),
        ("in.jsonl", "out.parquet", 7000),
    ],
)
def test_a_full_disk_leaves_nothing(workplace, models, vectors, source, output, rows):
    """A disk of 300 kB in a namespace of its own; a row takes 48 bytes."""
    write(workplace.folder, vectors[:rows], source)
    small = workplace.folder / "small"
    command = ["compress", "--input", source, "--output", f"small/{output}", "--model", str(models / "trained")]
    code, out, err, left = on_a_disk(workplace, small, *command, size="300k")
    assert code == 2, err
    assert "No space left on device" in err.splitlines()[-1]
    assert (out, left) == ("", [])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(workplace, models):
    """Files of zeros, which take no room: 15 and 600 MB once they are read."""
    program = """
import re
from pathlib import Path
from twinsqueeze import cli
try:
    cli.run()
finally:
    print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    peaks = {}
    for form in ("npy", "parquet"):
        for rows in (10_000, 400_000):
            name = f"{rows}.{form}"
            if form == "npy":
                np.lib.format.open_memmap(workplace.folder / name, "w+", np.float32, (rows, 384)).flush()
            else:
                values = pa.array(np.zeros(rows * 384, np.float32))
                table = pa.table({"v": pa.FixedSizeListArray.from_arrays(values, 384)})
                pq.write_table(table, workplace.folder / name, row_group_size=rows, use_dictionary=False)
                del values, table
            command = ["compress", "--input", name, "--output", f"{name}.npy", "--model", str(models / "trained")]
            done = subprocess.run(
                [sys.executable, "-c", program, *command],
                cwd=workplace.folder,
                env=workplace.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            peaks[form, rows] = int(done.stdout.split()[-1]) / 1000
        assert peaks[form, 400_000] - peaks[form, 10_000] < 150, peaks  # MB; the file's vectors take 600


@pytest.mark.parametrize("name", ["in.npy", "in.parquet", "in.csv", "in.jsonl", "in.txt"])
def test_blocks_have_all_rows_in_order(workplace, vectors, monkeypatch, name):
    monkeypatch.setattr(readers, "BLOCK_SIZES", {"vectors": 300, "texts": 300})
    num_rows = 5000 if name in {"in.npy", "in.parquet"} else 500
    expected = [f"text {i}" for i in range(num_rows)] if name == "in.txt" else vectors[:num_rows, :5]
    if name == "in.txt":
        (workplace.folder / name).write_text("".join(f"{text}\n" for text in expected))
    else:
        write(workplace.folder, expected, name)
    blocks = list(readers.read_blocks(str(workplace.folder / name)))
    ends = np.cumsum([len(block.rows) for block in blocks])
    assert max(len(block.rows) for block in blocks) == 300
    assert [block.first_row for block in blocks] == [0, *ends[:-1]]
    assert blocks[-1].position == blocks[-1].total
    np.testing.assert_array_equal(np.concatenate([block.rows for block in blocks]), expected)


def test_an_entry_point_of_mlflow_run_describes_its_run(compress, workplace, vectors, monkeypatch):
    np.save(workplace.folder / "in.npy", vectors[:20])
    run = workplace.client.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    compress("in.npy")
    ended = workplace.client.get_run(run.info.run_id)
    assert ended.info.status == "FINISHED"
    assert ended.data.tags["twinsqueeze.kind"] == "compression"
    assert ended.data.tags["mlflow.note.content"].startswith("20 rows of in.npy compressed to 12 numbers at float32")
