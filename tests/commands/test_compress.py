"""The command compress: what it writes, what it refuses, what an interruption and a full disk leave."""

import json
import signal
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.quantization import quantize_embeddings
from torch import nn

from tests.helpers.disks import stopped_by_a_disk
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
    """Compresses a file; returns the output's vectors, and what was printed."""

    def run(*arguments: str, output: str = "out.npy", **options: str) -> tuple[np.ndarray, str]:
        done = workplace.run(*command(*arguments, output=output, **options))
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


@pytest.mark.parametrize(
    ("precision", "size", "output"),
    [
        ("float32", 48, "out.npy"),
        ("int8", 12, "out.parquet"),
        ("binary", 2, "out.npy"),
        ("ubinary", 2, "out.parquet"),
    ],
)
def test_precisions_equal_those_of_sentence_transformers(compress, workplace, precision, size, output):
    found, printed = compress("in.npy", "--precision", precision, output=output)
    assert f"9,001 rows of in.npy compressed to 12 dimensions as {precision}, {size} bytes each" in printed
    floats, _ = compress("in.npy", output="floats.npy")
    np.testing.assert_allclose(floats, EXPECTED, atol=1e-6)
    theirs = quantize_embeddings(floats, precision, ranges=RANGES.astype(np.float32))
    assert found.dtype == theirs.dtype
    np.testing.assert_array_equal(found, theirs)
    if output == "out.parquet":
        metadata = pq.read_schema(workplace.folder / output).metadata
        assert json.loads(metadata[b"twinsqueeze"])["precision"] == precision


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
    (workplace.folder / "parts").mkdir()
    for i in range(3):
        part = pd.DataFrame(VECTORS[i * 20 : i * 20 + 20])
        part.to_csv(workplace.folder / "parts" / f"part-{i}.csv.gz", index=False)
    assert "/parts/out.npy' is in the input folder" in refuse("parts", output="parts/out.npy")
    found, printed = compress("parts")
    np.testing.assert_allclose(found, EXPECTED[:60], atol=1e-6)
    guess = "compressing the 64 columns '0' to '63' of parts/part-0.csv.gz as one vector per row; the first line is the"
    assert printed.count("one vector per row") == printed.count(guess) == 1


def test_an_exported_folder_compresses_texts(compress, workplace, models, expected_of_texts):
    workplace.run("export", "--model", str(models / "trained"), "--output", "exported")
    write_rows(workplace.folder / "in.txt", TEXTS)
    found, _ = compress("in.txt", model=str(workplace.folder / "exported"))
    np.testing.assert_allclose(found, expected_of_texts, atol=1e-6)


def test_vectors_are_read_from_a_pipe(workplace, command):
    arguments = ["-m", "twinsqueeze", *command("-")]
    with ForkedProcess(arguments, workplace.environment, workplace.folder, stdin=True) as process:
        process.stdin.buffer.write((workplace.folder / "in.npy").read_bytes())
        process.stdin.close()
        process.finish()
    np.testing.assert_allclose(np.load(workplace.folder / "out.npy"), EXPECTED, atol=1e-6)


def test_texts_that_the_encoder_cuts_are_counted_in_one_warning(compress, workplace):
    word = "bada "  # one token
    (workplace.folder / "in.txt").write_text(f"short\n{'x' * 1_000_000}\n{word * 126}\n{word * 127}\n{word * 9000}\n")
    _, printed = compress("in.txt")
    assert printed.count("2 texts were cut at the 128 tokens that the encoder takes") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({7_003: np.nan}, "row 7003 of in.npy has NaN or infinite numbers"),
        ({8_999: -np.inf, 9_000: np.inf}, "row 8999 of in.npy has NaN"),
        ({5: 3e38}, "row 5 of in.npy is too long a vector"),
    ],
)
def test_vectors_that_are_not_finite_are_refused_with_the_row(refuse, workplace, changes, message):
    changed = VECTORS.copy()
    for row, value in changes.items():
        changed[row] = value
    np.save(workplace.folder / "in.npy", changed)
    assert message in refuse("in.npy")


def test_large_finite_numbers_are_compressed(compress, workplace):
    """Their sum over a block is beyond float32."""
    np.save(workplace.folder / "in.npy", np.abs(VECTORS[:4096]) * np.float32(1e36))
    found, _ = compress("in.npy")
    assert np.isfinite(found).all()


def test_models_that_do_not_fit_are_refused(refuse, compress, workplace, tiny_encoder):
    np.save(workplace.folder / "narrow.npy", VECTORS[:10, :3])
    assert "compresses vectors of 64 numbers, and those of narrow.npy have 3" in refuse("narrow.npy")
    message = "precision must be one of float32, int8, product, binary, ubinary, not 'int4'"
    assert message in refuse("in.npy", "--precision", "int4")
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
    assert "'perhaps' is not a valid boolean" in refuse("in.npy", "--overwrite=perhaps")
    found, _ = compress("in.npy", "--overwrite")
    assert found.shape == (ROWS, 12)
    assert "/in.npy' is the input: name another file" in refuse("in.npy", "--overwrite", output="in.npy")
    np.save(workplace.folder / "nan.npy", np.full((3, 64), np.nan))
    assert "row 0" in refuse("nan.npy", "--overwrite", "true")


# The command, which prints a line and waits for a signal before it writes the second block.
HALTING_COMMAND = """
import itertools, signal
from twinsqueeze import cli
from twinsqueeze.commands import compress
numbers = itertools.count(1)
def halt():
    if next(numbers) == 2:
        print("halted", flush=True)
        signal.pause()
compress.check_interrupted = halt
cli.run()
"""


@pytest.mark.parametrize(("output", "number"), [("out.npy", signal.SIGKILL), ("out.parquet", signal.SIGTERM)])
def test_an_interrupted_compression_is_the_only_writer_and_leaves_no_output(
    command, compress, refuse, workplace, output, number
):
    arguments = ["-c", HALTING_COMMAND, *command("in.npy", output=output)]
    partial = workplace.folder / f"{output}.part"
    with ForkedProcess(arguments, workplace.environment, workplace.folder) as process:
        assert process.stdout.readline() == "halted\n"
        assert partial.exists()
        assert f"{output} is being written by another process" in refuse("in.npy", output=output)
        process.send_signal(number)
        assert process.wait() == (-number if number == signal.SIGKILL else 128 + number)
    assert not (workplace.folder / output).exists()
    assert partial.exists() == (number == signal.SIGKILL)
    found, _ = compress("in.npy", output=output)  # replaces what is left
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)


def test_an_interrupted_compression_of_texts_encodes_only_the_rest_when_started_again(command, workplace, monkeypatch):
    texts = [f"{number} men are playing chess" for number in range(60)]
    (workplace.folder / "in.txt").write_text("\n".join(texts))
    monkeypatch.setitem(row_blocks.BLOCK_SIZES, "texts", 8)
    cache, other_cache = ({"TWINSQUEEZE_CACHE": str(workplace.folder / name)} for name in ("cache", "other cache"))
    after_two_blocks = [None, Interrupted(signal.SIGTERM)]
    with patch("twinsqueeze.commands.compress.check_interrupted", side_effect=after_two_blocks):
        done = workplace.command(*command("in.txt"), **cache)
    assert done.returncode == 128 + signal.SIGTERM
    assert not (workplace.folder / "out.npy").exists()
    with patch.object(SentenceTransformer, "encode", autospec=True, side_effect=SentenceTransformer.encode) as encode:
        workplace.run(*command("in.txt"), **cache)
    assert [text for call in encode.call_args_list for text in call.args[1]] == texts[16:]
    workplace.run(*command("in.txt", output="whole.npy"), **other_cache)
    assert (workplace.folder / "out.npy").read_bytes() == (workplace.folder / "whole.npy").read_bytes()


@pytest.mark.parametrize("output", ["out.npy", "out.parquet", "out.faiss"])
def test_a_full_disk_leaves_nothing(workplace, command, output):
    """A disk of 60 kB; 9,001 codes of 8 bytes take 72 kB."""
    arguments = command("in.npy", output=f"small/{output}", model="codes")
    assert stopped_by_a_disk(workplace, workplace.folder / "small", *arguments, size="60k")[1] == []


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
    """Files of zeros: 3 and 192 MB of vectors, in one row group."""
    peaks = []
    for rows in (10_000, 750_000):
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


def test_an_entry_point_of_mlflow_run_describes_its_run(command, workplace, create_store):
    create_store(workplace.folder)
    run = workplace.client.create_run("0")
    workplace.run(*command("in.npy"), MLFLOW_RUN_ID=run.info.run_id)
    ended = workplace.client.get_run(run.info.run_id)
    assert ended.info.status == "FINISHED"
    assert ended.data.tags["twinsqueeze.kind"] == "compression"
    assert ended.data.tags["mlflow.note.content"].startswith(
        "9,001 rows of in.npy compressed to 12 dimensions as float32"
    )
