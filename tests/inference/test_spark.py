"""Spark on a cluster of two workers, each a process of its own, against the command compress."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load

import twinsqueeze
from tests.helpers.commands import ROOT, Workplace
from twinsqueeze.data.encoder import resolve_encoder
from twinsqueeze.errors import InputError
from twinsqueeze.inference.compression import VectorCompressor
from twinsqueeze.inference.spark import compress_batches
from twinsqueeze.model.checkpoint import CheckpointMetadata, serialize_checkpoint
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.model.precision import int8_calibration_ranges
from twinsqueeze.model.quantizers import ProductQuantizer
from twinsqueeze.recipe import Recipe

ROWS = 1_000_000
GROUP = 25_000
CLUSTER = {
    "spark.master": "local-cluster[2,1,1024]",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.executorEnv.PYTHONPATH": str(ROOT),
    "spark.executorEnv.HF_HUB_OFFLINE": "1",
}
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java 17")


def unit_vectors(rows: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, 384), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def as_lists(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


@pytest.fixture(scope="module")
def metadata() -> CheckpointMetadata:
    compressor = CompressorNetwork(kaiming_uniform_layers((384, 128, 64, 32), np.random.default_rng(0)))
    ranges = int8_calibration_ranges(compressor.compress(torch.from_numpy(unit_vectors(2000, 9))).numpy())
    return CheckpointMetadata(
        recipe=Recipe(),
        dataset="demo",
        dataset_digest="0",
        score_max=None,
        encoder_fingerprint=resolve_encoder("all-MiniLM-L6-v2").fingerprint,
        version=twinsqueeze.__version__,
        int8_ranges=ranges,
    )


@pytest.fixture(scope="module")
def weights(metadata) -> bytes:
    return serialize_checkpoint(
        CompressorNetwork(kaiming_uniform_layers((384, 128, 64, 32), np.random.default_rng(0))), metadata
    )


@pytest.fixture(scope="module")
def coded_weights(metadata) -> bytes:
    """Of a compressor that was trained as product codes."""
    codebooks = torch.randn(8, 256, 4, generator=torch.Generator().manual_seed(0)) / 6
    layers = kaiming_uniform_layers((384, 32), np.random.default_rng(1))
    recipe = Recipe(architecture="linear", quantizer="product")
    return serialize_checkpoint(
        CompressorNetwork(layers, ProductQuantizer(codebooks[None])), metadata.model_copy(update={"recipe": recipe})
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache, weights, coded_weights):
    """A workplace with a model, and a folder that is gone afterwards: a million vectors take room."""
    folder = tmp_path_factory.mktemp("spark")
    (folder / "model").mkdir()
    (folder / "model" / "compressor.safetensors").write_bytes(weights)
    (folder / "codes").mkdir()
    (folder / "codes" / "compressor.safetensors").write_bytes(coded_weights)
    yield Workplace(folder, shared_cache)
    shutil.rmtree(folder)


def compressed(place: Workplace, name: str, *arguments: str, model: str = "model") -> np.ndarray:
    """What the command compress makes of a file."""
    done = place.command(
        "compress", "--input", name, "--model", model, "--output", "out.npy", "--overwrite", "true", *arguments
    )
    assert done.returncode == 0, done.stderr
    return np.load(place.folder / "out.npy")


def vector_compressor(weights: bytes, precision: str = "float32") -> VectorCompressor:
    return VectorCompressor(CompressorNetwork.from_state_dict(load(weights)), precision, None)


def test_a_workers_batches_give_the_bits_of_the_compressor(weights):
    """Without Spark, what it calls in a worker, with batches of any length."""
    vectors = unit_vectors(1000, 0)
    expected = CompressorNetwork(kaiming_uniform_layers((384, 128, 64, 32), np.random.default_rng(0))).compress(
        torch.from_numpy(vectors)
    )
    batches = [
        pa.record_batch({"id": range(start, end), "v": as_lists(vectors[start:end])})
        for start, end in ((0, 1), (1, 8), (8, 8), (8, 700), (700, 1000))
    ]
    table = pa.Table.from_batches(compress_batches(iter(batches), vector_compressor(weights), "v", "short", None))
    assert table.column_names == ["id", "v", "short"]
    assert table["id"].to_pylist() == list(range(1000))
    np.testing.assert_array_equal(np.stack(table["short"].to_numpy()), expected.numpy())


def test_product_codes_are_numbers_that_spark_has(coded_weights):
    vectors = unit_vectors(50, 0)
    batch = pa.record_batch({"v": as_lists(vectors)})
    compressor = vector_compressor(coded_weights, "product")
    (found,) = compress_batches(iter([batch]), compressor, "v", "short", None)
    assert found["short"].type.value_type == pa.int16()
    network = compressor.network
    unit = network.compress(torch.from_numpy(vectors))
    expected = ProductQuantizer(network.codebooks[None]).encode(unit[None])[0].numpy()
    np.testing.assert_array_equal(np.stack(found["short"].to_numpy(zero_copy_only=False)), expected)
    assert expected.max() > 127


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.nan] + [0.0] * 383, "row 30 of partition 0 has NaN or infinite numbers"),
        ([0.0] * 383, "row 30 of partition 0 is not a list of 384 numbers"),
        (None, "row 30 of partition 0 is not a list of 384 numbers"),
    ],
)
def test_a_bad_row_is_named_by_its_place_in_the_partition(weights, row, message):
    rows = [list(map(float, vector)) for vector in unit_vectors(15, 0)]
    batches = [pa.record_batch({"v": pa.array(part, pa.list_(pa.float32()))}) for part in (rows, [*rows, row])]
    with pytest.raises(InputError, match=message):
        list(compress_batches(iter(batches), vector_compressor(weights), "v", "short", None))


PROGRAM = """
import json, sys
from pyspark.sql import SparkSession
from twinsqueeze.errors import InputError
from twinsqueeze.inference.spark import compress_frame
builder = SparkSession.builder
for name, value in json.loads(sys.argv[1]).items():
    builder = builder.config(name, value)
session = builder.getOrCreate()
session.sparkContext.setLogLevel("ERROR")
vectors = session.read.parquet("few.parquet")
for precision in ("int8", "binary"):
    frame = compress_frame(vectors, "model", precision=precision, output="short")
    frame.write.parquet(f"few-{precision}")
compress_frame(vectors, "codes", output="short").write.parquet("few-product")
texts = session.read.text("few.txt").repartition(3)
compress_frame(texts, "model").write.parquet("texts")
for wrong in (
    lambda: compress_frame(vectors, "model", precision="ubinary"),
    lambda: compress_frame(vectors, "model", precision="int4"),
    lambda: compress_frame(vectors, "model", column="nowhere"),
    lambda: compress_frame(vectors, "model", column="id"),
    lambda: compress_frame(vectors, "model", output="id"),
    lambda: compress_frame(vectors.select("id"), "model"),
    lambda: compress_frame(vectors, "nonsense"),
):
    try:
        wrong()
        print("not refused")
    except InputError as error:
        print(error)
session.stop()
"""


@pytest.mark.slow
@needs_java
def test_precisions_texts_and_what_is_refused(place):
    vectors = unit_vectors(5000, 1)
    ids = np.arange(5000)
    table = pa.table({"id": ids, "v": as_lists(vectors)})
    pq.write_table(table, place.folder / "few.parquet", row_group_size=700)
    texts = [f"{number} men are playing chess" for number in range(40)]
    (place.folder / "few.txt").write_text("\n".join(texts) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CLUSTER)],
        cwd=place.folder,
        env=place.environment | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for precision, model in (("int8", "model"), ("binary", "model"), ("product", "codes")):
        found = pq.read_table(place.folder / f"few-{precision}").sort_by("id")
        assert found.column_names == ["id", "v", "short"]
        np.testing.assert_array_equal(
            np.stack(found["short"].to_numpy()), compressed(place, "few.parquet", "--precision", precision, model=model)
        )
    found = pq.read_table(place.folder / "texts")
    order = [texts.index(text) for text in found["value"].to_pylist()]
    assert sorted(order) == list(range(40))
    np.testing.assert_allclose(np.stack(found["compressed"].to_numpy()), compressed(place, "few.txt")[order], atol=1e-6)
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "Spark has no unsigned bytes",
        "precision must be one of float32, int8, product, binary, ubinary, not 'int4'",
        "the frame has no column 'nowhere'; its columns are id, v",
        "column 'id' of the frame is int64, neither texts nor lists of numbers",
        "the frame already has a column 'id'",
        "the frame has neither texts nor lists of numbers; its columns are id",
        "model 'nonsense' not found",
    ]


def submit(place: Workplace, *arguments: str, **configuration: str) -> subprocess.Popen:
    """The README's command, on the cluster of the test."""
    settings = CLUSTER | {name.replace("__", "."): value for name, value in configuration.items()}
    return subprocess.Popen(
        [
            str(Path(sys.executable).with_name("spark-submit")),
            *(part for name, value in settings.items() for part in ("--conf", f"{name}={value}")),
            *(str(ROOT / "scripts" / "spark_compress.py"), "--model", "model", *arguments),
        ],
        cwd=place.folder,
        env=place.environment | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # spark-submit prints there what the driver says, on whichever of the two
        text=True,
    )


def executors(process: subprocess.Popen) -> list[psutil.Process]:
    """The cluster's workers below a process that we started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("CoarseGrainedExecutorBackend" in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:  # one that has just ended
            continue
    return found


@pytest.mark.slow
@needs_java
@pytest.mark.timeout(900)
def test_a_million_vectors_although_a_worker_is_killed(place):
    schema = pa.schema([("id", pa.int64()), ("v", pa.list_(pa.float32(), 384))])
    with pq.ParquetWriter(place.folder / "million.parquet", schema, use_dictionary=False, compression="none") as writer:
        for start in range(0, ROWS, GROUP):
            ids = np.arange(start, start + GROUP)
            writer.write_table(pa.table({"id": ids, "v": as_lists(unit_vectors(GROUP, start))}, schema))
    (place.folder / "events").mkdir()
    process = submit(
        place,
        *("--input", "million.parquet", "--output", "million"),
        spark__sql__files__maxPartitionBytes=str(GROUP * 384 * 4),
        spark__eventLog__enabled="true",
        spark__eventLog__dir=f"file://{place.folder}/events",
        spark__eventLog__rolling__enabled="false",
        spark__eventLog__compress="false",
    )
    log = place.folder / "spark.log"
    with log.open("w") as sink, process:
        reader = subprocess.Popen(["cat"], stdin=process.stdout, stdout=sink)
        end = time.monotonic() + 300
        # Some partitions are done, and some are not begun: a worker is lost with the one that it is at.
        while len(list(place.folder.glob("million/_temporary/0/task_*"))) < 4:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end
            time.sleep(0.1)
        first, *others = executors(process)
        assert len(others) == 1
        first.kill()
        assert process.wait(600) == 0, log.read_text()[-3000:]
        reader.wait(10)

    (events,) = (place.folder / "events").iterdir()
    ends = [event for line in events.open() if (event := json.loads(line))["Event"] == "SparkListenerTaskEnd"]
    reasons = [event["Task End Reason"]["Reason"] for event in ends]
    assert "ExecutorLostFailure" in reasons
    found = pq.read_table(place.folder / "million").sort_by("id")
    assert found.column_names == ["id", "compressed"]
    np.testing.assert_array_equal(found["id"].to_numpy(), np.arange(ROWS))
    ours = found["compressed"].combine_chunks().flatten().to_numpy().reshape(ROWS, 32)
    np.testing.assert_array_equal(ours, compressed(place, "million.parquet"))


@pytest.mark.slow
@needs_java
def test_a_bad_row_ends_the_job_with_a_line(place):
    vectors = unit_vectors(50, 2)
    vectors[33, 7] = np.inf
    pq.write_table(pa.table({"v": as_lists(vectors)}), place.folder / "bad.parquet")
    with submit(place, "--input", "bad.parquet", "--output", "bad") as process:
        said = process.stdout.read()
        assert process.wait(120) != 0
    (line,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert line == "Error: row 33 of partition 0 has NaN or infinite numbers: correct or remove it"
