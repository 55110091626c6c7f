"""The command compress: what it writes, what it refuses, what an interruption and a full disk leave."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.quantization import quantize_embeddings
from torch import nn

from tests.helpers.disks import on_a_disk
from tests.helpers.forks import ForkedProcess
from tests.helpers.models import metadata_for, product_network, write_model
from tests.helpers.vectors import as_lists, unit_vectors, write_rows
from twinsqueeze.data import row_blocks
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.utils.signals import Interrupted

ROWS = 9_001  # three blocks, the last of which has few rows and not a multiple of 16
VECTORS = unit_vectors(ROWS, 64)
TEXTS = ["a cat sleeps", 'she said "no, thanks"', "", "naïve café, 東京", "two men are\u2028playing chess"]
NETWORK = CompressorNetwork(kaiming_uniform_layers((64, 128, 12), np.random.default_rng(0)))


@torch.inference_mode()
def compress_with_pytorch(vectors: np.ndarray) -> np.ndarray:
    modules = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 12))
    modules.load_state_dict(NETWORK.state_dict())
    return nn.functional.normalize(modules(torch.from_numpy(vectors)), dim=1).numpy()


EXPECTED = compress_with_pytorch(VECTORS)
RANGES = np.array([EXPECTED[:5000].min(0), EXPECTED[:5000].max(0)])


@pytest.fixture(scope="module")
def expected_of_texts(tiny_encoder) -> np.ndarray:
    encoder = SentenceTransformer(str(tiny_encoder), device="cpu")
    return compress_with_pytorch(encoder.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False))


@pytest.fixture(scope="module")
def models(tiny_encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "trained", NETWORK, metadata_for(tiny_encoder, RANGES.tolist()))
    write_model(folder / "without ranges", NETWORK, metadata_for(tiny_encoder))
    write_model(folder / "foreign", NETWORK, None)
    linear = CompressorNetwork(kaiming_uniform_layers((64, 12), np.random.default_rng(0)))
    write_model(folder / "linear", linear, metadata_for(tiny_encoder))
    write_model(
        folder / "codes", product_network(64), metadata_for(tiny_encoder, architecture="linear", quantizer="product")
    )
    return folder


@pytest.fixture(autouse=True)
def write_input(workplace) -> None:
    np.save(workplace.folder / "in.npy", VECTORS)


@pytest.fixture
def command(models):
    """The arguments of a compression."""

    def arguments(name: str, *more: str, output: str = "out.npy", model: str = "trained") -> list[str]:
        return ["compress", "--input", name, "--model", str(models / model), "--output", output, *more]

    return arguments


@pytest.fixture
def compress(workplace, command):
    """Compresses a file; gives the output's vectors, and what was printed. `environment` has more variables."""

    def run(
        *arguments: str, output: str = "out.npy", environment: Mapping[str, str] | None = None, **options: str
    ) -> tuple[np.ndarray, str]:
        done = workplace.run(*command(*arguments, output=output, **options), **(environment or {}))
        assert list(workplace.folder.glob("*.part")) == []
        path = workplace.folder / output
        found = np.load(path) if path.suffix == ".npy" else np.stack(pq.read_table(path)["vector"].to_numpy())
        return found, done.stdout + done.stderr

    return run


@pytest.fixture
def refuse(workplace, command):
    """Expects a refusal in one line that leaves the folder as it was; gives the line."""

    def run(*arguments: str, **options: str) -> str:
        before = {path.name: path.stat().st_mtime_ns for path in workplace.folder.iterdir()}
        done = workplace.command(*command(*arguments, **options))
        assert (done.returncode, done.stdout) == (2, "")
        assert {path.name: path.stat().st_mtime_ns for path in workplace.folder.iterdir()} == before
        *progress, line = done.stderr.splitlines()
        assert all(line.startswith("compressing") or "cast" in line for line in progress)
        assert line.startswith("twinsqueeze: ")
        return line

    return run


@pytest.mark.parametrize("name", ["in.npy", "fortran.npy", "in.parquet", "in.csv", "in.jsonl"])
def test_vectors_of_every_format_are_compressed_as_pytorch_does(compress, workplace, name):
    rows = 700 if name in {"in.csv", "in.jsonl"} else ROWS
    order = np.asfortranarray if name == "fortran.npy" else np.ascontiguousarray
    write_rows(workplace.folder / name, order(VECTORS[:rows]))
    found, _ = compress(name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, EXPECTED[:rows], atol=1e-6)


def test_the_bits_of_a_row_do_not_depend_on_the_rows_beside_it(compress, workplace):
    whole, _ = compress("in.npy")
    for name, rows in (("one.npy", slice(8_999, 9_000)), ("some.npy", slice(4_000, 4_103))):
        np.save(workplace.folder / name, VECTORS[rows])
        found, _ = compress(name, output=f"out-{name}")
        np.testing.assert_array_equal(found, whole[rows])


@pytest.mark.parametrize("output", ["out.npy", "out.parquet"])
@pytest.mark.parametrize(("precision", "size"), [("float32", 48), ("int8", 12), ("binary", 2), ("ubinary", 2)])
def test_precisions_equal_those_of_sentence_transformers(compress, workplace, precision, size, output):
    found, printed = compress("in.npy", "--precision", precision, output=output)
    assert f"9,001 rows of in.npy compressed to 12 dimensions as {precision}, {size} bytes each" in printed
    floats, _ = compress("in.npy", output="floats.npy")
    theirs = quantize_embeddings(floats, precision, ranges=RANGES.astype(np.float32))
    assert found.dtype == theirs.dtype
    np.testing.assert_array_equal(found, theirs)
    if output == "out.parquet":
        metadata = pq.read_schema(workplace.folder / output).metadata
        assert json.loads(metadata[b"twinsqueeze"])["precision"] == precision


def test_faiss_searches_product_codes(compress, workplace, models):
    """FAISS takes the codebooks from the model's file."""
    codes, _ = compress("in.npy", model="codes")
    assert (codes.dtype, codes.shape) == (np.uint8, (ROWS, 8))
    unit, _ = compress("in.npy", "--precision", "float32", "--overwrite", "true", model="codes")
    codebooks = load_file(models / "codes" / "compressor.safetensors")["codebooks"]
    num_subvectors, num_centroids, subvector_dim = codebooks.shape
    assert num_centroids == 256
    index = faiss.IndexPQ(num_subvectors * subvector_dim, num_subvectors, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(codebooks.ravel(), index.pq.centroids)
    index.is_trained = True
    np.testing.assert_array_equal(index.sa_encode(unit), codes)
    index.add_sa_codes(codes)
    restored = index.sa_decode(codes)
    similarities, found = index.search(unit[:100], 5)
    cosines = similarities / np.linalg.norm(index.reconstruct_n(0, index.ntotal), axis=1)[found]
    directions = restored / np.linalg.norm(restored, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, np.take_along_axis(unit[:100] @ directions.T, found, 1), atol=1e-5)
    best = np.sort(unit[:100] @ restored.T, 1)[:, -5:]
    np.testing.assert_allclose(np.sort(np.take_along_axis(unit[:100] @ restored.T, found, 1), 1), best, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4"])
def test_other_numbers_are_cast_to_float32_with_one_message(compress, workplace, dtype):
    numbers = (VECTORS * 50).astype(dtype)
    np.save(workplace.folder / "in.npy", numbers)
    found, printed = compress("in.npy")
    assert printed.count("which are cast to float32") == (dtype != ">f4")
    np.testing.assert_allclose(found, compress_with_pytorch(numbers.astype(np.float32)), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("in.txt", []),
        ("in.csv", ["--column", "row"]),
        ("in.txt", ["--input", "-"]),
        ("in.csv", ["--input", "-", "--format", "csv", "--column", "row"]),
    ],
)
def test_texts_are_encoded_and_compressed(compress, workplace, expected_of_texts, monkeypatch, name, arguments):
    write_rows(workplace.folder / name, TEXTS)
    with (workplace.folder / name).open() as file:
        monkeypatch.setattr("sys.stdin", file)
        found, _ = compress(name, *arguments)
    np.testing.assert_allclose(found, expected_of_texts, atol=1e-6)


def test_a_folder_is_compressed_and_what_was_guessed_is_said_once(compress, refuse, workplace):
    for i in range(3):
        part = pd.DataFrame(VECTORS[i * 20 : i * 20 + 20])
        workplace.folder.joinpath("parts").mkdir(exist_ok=True)
        part.to_csv(workplace.folder / "parts" / f"part-{i}.csv.gz", index=False)
    assert "/parts/out.npy' is in the input folder" in refuse("parts", output="parts/out.npy")
    found, printed = compress("parts")
    np.testing.assert_allclose(found, EXPECTED[:60], atol=1e-6)
    guess = "compressing the 64 columns '0' to '63' of parts/part-0.csv.gz as one vector per row; the first line is the"
    assert printed.count("one vector per row") == printed.count(guess) == 1


def test_an_exported_folder_compresses_texts_and_vectors(compress, workplace, models, expected_of_texts):
    workplace.run("export", "--model", str(models / "trained"), "--output", "exported")
    write_rows(workplace.folder / "in.txt", TEXTS)
    for name, theirs in (("in.txt", expected_of_texts), ("in.npy", EXPECTED)):
        found, _ = compress(name, output=f"{name}-out.npy", model=str(workplace.folder / "exported"))
        np.testing.assert_allclose(found, theirs, atol=1e-6)


def test_vectors_are_read_from_a_pipe(workplace, command):
    arguments = ["-m", "twinsqueeze", *command("-")]
    with ForkedProcess(arguments, workplace.environment, workplace.folder, stdin=True) as process:
        process.stdin.buffer.write((workplace.folder / "in.npy").read_bytes())
        process.stdin.close()
        process.finish()
    np.testing.assert_allclose(np.load(workplace.folder / "out.npy"), EXPECTED, atol=1e-6)


def test_a_text_of_a_million_characters_is_cut_as_the_encoder_cuts_with_a_warning(compress, workplace):
    word = "bada "  # one token
    long = word * 130 + "x" * 1_000_000
    (workplace.folder / "in.txt").write_text(f"short\n{long}\n{word * 126}\n{word * 127}\n")
    found, printed = compress("in.txt")
    assert printed.count("2 texts were cut at the 128 tokens that the encoder takes") == 1
    (workplace.folder / "cut.txt").write_text(f"short\n{long[:3000]}\n")
    cut, printed = compress("cut.txt", output="cut.npy")
    assert "1 texts were cut" in printed
    np.testing.assert_allclose(found[:2], cut, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("in.npy", {7_003: np.nan}, "row 7003 of in.npy has NaN or infinite numbers"),
        ("in.npy", {8_999: -np.inf, 9_000: np.inf}, "row 8999 of in.npy has NaN"),
        ("in.npy", {5: 3e38}, "row 5 of in.npy is too long a vector"),
        ("in.parquet", {6_003: np.inf}, "row 6003 of in.parquet has NaN or infinite numbers"),
        ("in.csv", {303: np.nan}, "row 303 of in.csv has NaN or infinite numbers"),
    ],
)
def test_vectors_that_are_not_finite_are_refused_with_the_row(refuse, workplace, name, changes, message):
    changed = VECTORS[: 500 if name == "in.csv" else ROWS].copy()
    for row, value in changes.items():
        changed[row] = value
    write_rows(workplace.folder / name, changed)
    assert message in refuse(name)


def test_large_finite_numbers_are_compressed(compress, workplace):
    """Their sum over a block is beyond float32."""
    np.save(workplace.folder / "in.npy", np.abs(VECTORS[:4096]) * np.float32(1e36))
    found, _ = compress("in.npy")
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int4"], "precision must be one of float32, int8, product, binary, ubinary, not 'int4'"),
        (["--device", "gpu"], "device must be auto, cpu or cuda"),
        (["--overwrite=perhaps"], "'perhaps' is not a valid boolean"),
        (["--output", "out.txt"], "out.txt' ends in none of .npy, .parquet, .faiss"),
        (["--input", "nowhere.npy"], "input 'nowhere.npy' is not there"),
        (["--input", "narrow.npy"], "compresses vectors of 64 numbers, and those of narrow.npy have 3"),
        (["--input", "narrow.csv"], "compresses vectors of 64 numbers, and those of narrow.csv have 3"),
        (["--input", "damaged.jsonl"], "row 1 of damaged.jsonl can't be read as jsonl"),
        (["--model", "nonsense"], "model 'nonsense' not found"),
    ],
)
def test_options_that_can_not_be_used_are_refused(refuse, workplace, arguments, message):
    for name in ("narrow.npy", "narrow.csv"):
        write_rows(workplace.folder / name, VECTORS[:10, :3])
    (workplace.folder / "damaged.jsonl").write_text('"a"\n{\n')
    assert message in refuse("in.npy", *arguments)


def test_models_that_lack_what_is_needed_are_refused(refuse, compress, workplace, tiny_encoder):
    (workplace.folder / "in.txt").write_text("a text\n")
    for model in ("without ranges", "foreign"):
        assert "has no ranges to scale int8 by" in refuse("in.npy", "--precision", "int8", model=model)
        assert "was not trained as product codes" in refuse("in.npy", "--precision", "product", model=model)
    assert "does not record its encoder: name the run that trained it" in refuse("in.txt", model="foreign")
    named, _ = compress("in.txt", "--encoder", str(tiny_encoder), model="foreign")
    recorded, _ = compress("in.txt", output="recorded.npy")
    np.testing.assert_array_equal(named, recorded)


def test_an_output_is_replaced_only_with_overwrite_and_only_by_a_whole_one(refuse, compress, workplace):
    np.save(workplace.folder / "out.npy", np.zeros(3))
    assert "/out.npy' exists: name another file, or pass --overwrite" in refuse("in.npy")
    found, _ = compress("in.npy", "--overwrite")
    assert found.shape == (ROWS, 12)
    assert "/in.npy' is the input: name another file" in refuse("in.npy", "--overwrite", output="in.npy")
    np.save(workplace.folder / "nan.npy", np.full((3, 64), np.nan))
    assert "row 0" in refuse("nan.npy", "--overwrite", "true")


# The command with small blocks of texts, which prints a line and waits for a signal before it writes the second block.
HALTING_COMMAND = """
import itertools, signal
from twinsqueeze import cli
from twinsqueeze.commands import compress
from twinsqueeze.data import row_blocks
numbers = itertools.count(1)
def halt():
    if next(numbers) == 2:
        print("halted", flush=True)
        signal.pause()
compress.check_interrupted = halt
row_blocks.BLOCK_SIZES["texts"] = 8
cli.run()
"""


@pytest.fixture
def start_and_halt(workplace, command):
    """Starts a compression, and gives its process when it has halted between two blocks."""

    def start(source: str, output: str = "out.npy", **variables: str) -> ForkedProcess:
        arguments = ["-c", HALTING_COMMAND, *command(source, output=output)]
        process = ForkedProcess(arguments, workplace.environment | variables, workplace.folder)
        assert process.stdout.readline() == "halted\n", process.stderr.read()
        return process

    return start


SLOW_INTERRUPTIONS = [
    *(("out.npy", number) for number in (signal.SIGTERM, signal.SIGINT)),
    *(("out.parquet", number) for number in (signal.SIGKILL, signal.SIGINT)),
]


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("out.npy", signal.SIGKILL),
        ("out.parquet", signal.SIGTERM),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_INTERRUPTIONS),
    ],
)
def test_an_interrupted_compression_leaves_no_output(start_and_halt, compress, workplace, output, number):
    partial = workplace.folder / f"{output}.part"
    with start_and_halt("in.npy", output) as process:
        assert partial.exists()
        process.send_signal(number)
        assert process.wait() == (-number if number == signal.SIGKILL else 128 + number)
    assert not (workplace.folder / output).exists()
    assert partial.exists() == (number == signal.SIGKILL)
    found, _ = compress("in.npy", output=output)  # replaces what is left
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)


def test_an_output_has_one_writer(start_and_halt, command, workplace):
    with start_and_halt("in.npy") as process:
        done = workplace.command(*command("in.npy"))
        process.kill()
    assert done.returncode == 2
    assert "out.npy is being written by another process" in done.stderr


@pytest.mark.parametrize("process_is_killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupted_compression_of_texts_encodes_only_the_rest_when_started_again(
    start_and_halt, command, compress, workplace, monkeypatch, process_is_killed
):
    texts = [f"{number} men are playing chess" for number in range(60)]
    (workplace.folder / "in.txt").write_text("\n".join(texts))
    cache = {"TWINSQUEEZE_CACHE": str(workplace.folder / "cache")}
    monkeypatch.setitem(row_blocks.BLOCK_SIZES, "texts", 8)
    if process_is_killed:
        with start_and_halt("in.txt", **cache) as process:
            process.kill()
    else:
        after_two_blocks = [None, Interrupted(signal.SIGTERM)]
        with patch("twinsqueeze.commands.compress.check_interrupted", side_effect=after_two_blocks):
            done = workplace.command(*command("in.txt"), **cache)
        assert done.returncode == 128 + signal.SIGTERM
    assert not (workplace.folder / "out.npy").exists()
    with patch.object(SentenceTransformer, "encode", autospec=True, side_effect=SentenceTransformer.encode) as encode:
        found, _ = compress("in.txt", environment=cache)
    assert [text for call in encode.call_args_list for text in call.args[1]] == texts[16:]
    other_cache = {"TWINSQUEEZE_CACHE": str(workplace.folder / "other cache")}
    whole, _ = compress("in.txt", output="whole.npy", environment=other_cache)
    np.testing.assert_array_equal(found, whole)


DISKS = [("in.npy", "out.npy"), ("in.npy", "out.faiss")]
SLOW_DISKS = [("in.npy", "out.parquet"), ("in.jsonl", "out.npy"), ("in.jsonl", "out.parquet")]


@pytest.mark.parametrize(
    ("source", "output"), [*DISKS, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_DISKS)]
)
def test_a_full_disk_leaves_nothing(workplace, command, source, output):
    """A disk of 300 kB; the output takes 336 kB."""
    write_rows(workplace.folder / source, VECTORS[:7000])
    arguments = command(source, output=f"small/{output}", model="linear")
    code, out, err, left = on_a_disk(workplace, workplace.folder / "small", *arguments, size="300k")
    assert code == 2, err
    assert "No space left on device" in err.splitlines()[-1]
    assert (out, left) == ("", [])


PEAK_MEMORY = """
import resource
from twinsqueeze import cli
try:
    cli.run()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["npy", "parquet"])
def test_memory_does_not_grow_with_the_rows(workplace, command, format_):
    """Files of zeros: 3 and 384 MB of vectors, in one row group."""
    peaks = []
    for rows in (10_000, 1_500_000):
        path = workplace.folder / f"{rows}.{format_}"
        if format_ == "npy":
            np.lib.format.open_memmap(path, "w+", np.float32, (rows, 64)).flush()
        else:
            table = pa.table({"v": as_lists(np.zeros((rows, 64), np.float32))})
            pq.write_table(table, path, row_group_size=rows, use_dictionary=False)
        program = ["-c", PEAK_MEMORY, *command(path.name, output=f"{path.name}.npy")]
        with ForkedProcess(program, workplace.environment, workplace.folder) as process:
            output, _ = process.finish()
        peaks.append(int(output.split()[-1]) / (1e6 if sys.platform == "darwin" else 1e3))
    assert peaks[1] - peaks[0] < 100, peaks  # MB


def test_an_entry_point_of_mlflow_run_describes_its_run(compress, workplace, trained_place):
    trained_place.copy_to(workplace.folder)
    run = workplace.client.create_run("0")
    compress("in.npy", environment={"MLFLOW_RUN_ID": run.info.run_id})
    ended = workplace.client.get_run(run.info.run_id)
    assert ended.info.status == "FINISHED"
    assert ended.data.tags["twinsqueeze.kind"] == "compression"
    assert ended.data.tags["mlflow.note.content"].startswith(
        "9,001 rows of in.npy compressed to 12 dimensions as float32"
    )
