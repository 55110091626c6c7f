"""Spark on a cluster of two workers, each a process of its own, gives the bits of the command compress."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark import TaskContext
from pyspark.sql import SparkSession
from sentence_transformers import SentenceTransformer

from tests.helpers.commands import ROOT, Workplace
from tests.helpers.models import metadata_for, product_network, write_model
from tests.helpers.vectors import as_lists, unit_vectors
from twinsqueeze.errors import InputError
from twinsqueeze.inference.compression import VectorCompressor
from twinsqueeze.inference.spark import compress_batches, compress_frame
from twinsqueeze.model.compressor import CompressorNetwork
from twinsqueeze.model.initialization import kaiming_uniform_layers
from twinsqueeze.model.precision import int8_calibration_ranges

ROWS, PARTITIONS = 8_000, 8
CLUSTER = {
    "spark.master": "local-cluster[2,1,1024]",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.executorEnv.PYTHONPATH": str(ROOT),
    "spark.executorEnv.HF_HUB_OFFLINE": "1",
    "spark.task.maxFailures": "2",
    "spark.sql.files.maxPartitionBytes": str(ROWS // PARTITIONS * 384 * 4),
    "spark.sql.execution.arrow.maxRecordsPerBatch": "500",
}
ENVIRONMENT = {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
SCRIPT = ROOT / "scripts" / "spark_compress.py"
NETWORK = CompressorNetwork(kaiming_uniform_layers((384, 128, 64, 32), np.random.default_rng(0)))


@pytest.fixture(autouse=True)
def threads_as_before():
    """The code of Spark's workers sets the number of threads."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize(
    ("network", "precision", "type_"),
    [
        (NETWORK, "float32", pa.float32()),
        (NETWORK, "binary", pa.int8()),
        (product_network(384), "product", pa.int16()),
    ],
)
def test_batches_of_any_length_give_the_bits_of_the_compressor(network, precision, type_):
    """The function that Spark calls in a worker."""
    vectors = unit_vectors(1000, 384)
    batches = [
        pa.record_batch({"id": range(start, end), "v": as_lists(vectors[start:end])})
        for start, end in ((0, 1), (1, 8), (8, 8), (8, 700), (700, 1000))
    ]
    compressor = VectorCompressor(network, precision, None)
    table = pa.Table.from_batches(compress_batches(iter(batches), compressor, "v", "short", None))
    assert table.column_names == ["id", "v", "short"]
    assert table["short"].type.value_type == type_
    assert table["id"].to_pylist() == list(range(1000))
    np.testing.assert_array_equal(np.stack(table["short"].to_numpy()), compressor.compress(vectors))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([np.nan] + [0.0] * 383, "row 30 of partition 0 has NaN or infinite numbers"),
        ([0.0] * 383, "row 30 of partition 0 is not a list of 384 numbers"),
        (None, "row 30 of partition 0 is not a list of 384 numbers"),
    ],
)
def test_a_bad_row_is_named_by_its_place_in_the_partition(row, message):
    rows = unit_vectors(15, 384).tolist()
    batches = [pa.record_batch({"v": pa.array(part, pa.list_(pa.float32()))}) for part in (rows, [*rows, row])]
    with pytest.raises(InputError, match=message):
        list(compress_batches(iter(batches), VectorCompressor(NETWORK, "float32", None), "v", "short", None))


@pytest.fixture(scope="session")  # Spark keeps its working directory, whatever tests run in between
def place(tmp_path_factory, shared_cache, tiny_encoder) -> Workplace:
    """A workplace with models and vectors."""
    if shutil.which("java") is None:
        pytest.skip("needs Java 17")
    folder = tmp_path_factory.mktemp("spark")
    ranges = int8_calibration_ranges(NETWORK.compress(torch.from_numpy(unit_vectors(2000, 384, 9))).numpy())
    write_model(folder / "model", NETWORK, metadata_for(tiny_encoder, ranges))
    write_model(
        folder / "codes", product_network(384), metadata_for(tiny_encoder, architecture="linear", quantizer="product")
    )
    text_network = CompressorNetwork(kaiming_uniform_layers((64, 32), np.random.default_rng(0)))
    write_model(folder / "text-model", text_network, metadata_for(tiny_encoder))
    table = pa.table({"id": np.arange(ROWS), "v": as_lists(unit_vectors(ROWS, 384))})
    pq.write_table(table, folder / "many.parquet", row_group_size=ROWS // PARTITIONS, use_dictionary=False)
    pq.write_table(table[:1000], folder / "few.parquet", row_group_size=300)
    return Workplace(folder, shared_cache)


@pytest.fixture(scope="session")
def session(place) -> Iterator[SparkSession]:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        session = SparkSession.builder.config(map=CLUSTER).getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        yield session
        session.stop()
    signal.signal(signal.SIGINT, handler)  # Spark sets one


def compressed(place: Workplace, name: str, *arguments: str, model: str = "model") -> np.ndarray:
    """What the command compress makes of a file."""
    command = ["compress", "--input", name, "--model", model, "--output", "out.npy", "--overwrite", "true", *arguments]
    place.run(*command)
    return np.load(place.folder / "out.npy")


@pytest.mark.slow
def test_codes_equal_those_of_the_command(session, place):
    frame = compress_frame(session.read.parquet("few.parquet"), "model", precision="int8", output="int8")
    found = compress_frame(frame, "codes", column="v", output="product").toArrow().sort_by("id")
    assert found.column_names == ["id", "v", "int8", "product"]
    for precision, model in (("int8", "model"), ("product", "codes")):
        expected = compressed(place, "few.parquet", "--precision", precision, model=model)
        np.testing.assert_array_equal(np.stack(found[precision].to_numpy()), expected)


@pytest.mark.slow
def test_the_command_reads_folders_that_spark_writes(session, place):
    expected = compressed(place, "few.parquet")
    frame = session.read.parquet("few.parquet").repartition(3)
    for format_, read in (("parquet", pd.read_parquet), ("json", partial(pd.read_json, lines=True))):
        frame.write.format(format_).save(f"written.{format_}")
        parts = sorted((place.folder / f"written.{format_}").glob("part-*"))
        order = pd.concat(map(read, parts))["id"]
        assert len(parts) == 3
        np.testing.assert_array_equal(compressed(place, f"written.{format_}"), expected[order])


@pytest.mark.slow
def test_texts_are_encoded_by_the_workers(session, place):
    texts = [f"{number} men are playing chess" for number in range(40)]
    (place.folder / "few.txt").write_text("\n".join(texts) + "\n")
    found = compress_frame(session.read.text("few.txt").repartition(3), "text-model").toArrow()
    order = [texts.index(text) for text in found["value"].to_pylist()]
    assert sorted(order) == list(range(40))
    expected = compressed(place, "few.txt", model="text-model")[order]
    np.testing.assert_allclose(np.stack(found["compressed"].to_numpy()), expected, atol=1e-6)


@pytest.mark.slow
def test_spark_udf_returns_the_vectors_of_the_champion(session, trained_place, tiny_encoder, use_store):
    texts = ["A man is playing a guitar.", "", "Two dogs run through the snow."]
    encoded = SentenceTransformer(str(tiny_encoder), device="cpu").encode(texts)
    frame = session.createDataFrame([*zip(texts, encoded.tolist(), strict=True)], ["text", "vector"])
    use_store(trained_place.uri)
    uri = "models:/twinsqueeze@champion"
    version = trained_place.client.get_model_version_by_alias("twinsqueeze", "champion")
    compressor = str(trained_place.model(trained_place.client.get_run(version.tags["twinsqueeze.trained_run"])))
    expected = mlflow.pyfunc.load_model(uri).predict(texts)
    for model, column, options in (
        (uri, "text", {}),
        (uri, "text", {"result_type": "array<double>"}),
        (compressor, "vector", {}),
    ):
        compressed = frame.select(mlflow.pyfunc.spark_udf(session, model, **options)(column))
        assert compressed.schema[0].dataType.simpleString() == options.get("result_type", "array<float>")
        found = np.array([row[0] for row in compressed.collect()], np.float64)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_wrong_arguments_are_refused(session):
    vectors = session.read.parquet("few.parquet")
    for options, message in (
        ({"precision": "ubinary"}, "Spark has no unsigned bytes"),
        ({"column": "id"}, "column 'id' of the frame is int64, neither texts nor lists of numbers"),
        ({"output": "id"}, "the frame already has a column 'id'"),
    ):
        with pytest.raises(InputError, match=message):
            compress_frame(vectors, "model", **options)


@pytest.mark.slow
def test_a_bad_row_ends_the_script_with_one_line(session, place, monkeypatch, capsys):
    vectors = unit_vectors(50, 384)
    vectors[33, 7] = np.inf
    pq.write_table(pa.table({"v": as_lists(vectors)}), place.folder / "bad.parquet")
    monkeypatch.setattr(SparkSession, "stop", lambda self: None)  # the other tests need it
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--input", "bad.parquet", "--model", "model", "--output", "bad"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert exit_.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert line == "Error: row 33 of partition 0 has NaN or infinite numbers: correct or remove it"


@pytest.mark.slow
def test_the_bits_do_not_change_if_a_worker_is_killed_in_the_midst_of_a_partition(session, place):
    folder = place.folder / "tasks"
    folder.mkdir()

    def halt(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Halt after the first batch of a partition, from the fifth one on, until the test goes on."""
        context = TaskContext.get()
        for number, batch in enumerate(batches):
            if context.partitionId() >= 4 and number == 1:
                (folder / f"{context.partitionId()} {context.attemptNumber()} {os.getppid()}").touch()
                while not (folder / "go on").exists():
                    time.sleep(0.05)
            yield batch

    frame = session.read.parquet("many.parquet")
    frame = compress_frame(frame.mapInArrow(halt, frame.schema), "model").drop("v")
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(frame.write.parquet, "many")
        while len(list(folder.iterdir())) < 2:  # one task per worker
            assert not writing.done(), writing.result()
            time.sleep(0.05)
        (partition, _, daemon), (_, _, other_daemon) = (path.name.split() for path in folder.iterdir())
        assert daemon != other_daemon
        psutil.Process(int(daemon)).parent().kill()
        (folder / "go on").touch()
        writing.result()
    assert [path.name.split()[0] for path in folder.glob("* 1 *")] == [partition]
    found = pq.read_table(place.folder / "many").sort_by("id")
    assert found.column_names == ["id", "compressed"]
    np.testing.assert_array_equal(found["id"].to_numpy(), np.arange(ROWS))
    ours = found["compressed"].combine_chunks().flatten().to_numpy().reshape(ROWS, 32)
    np.testing.assert_array_equal(ours, compressed(place, "many.parquet"))


@pytest.mark.slow
def test_spark_submit_runs_the_script(place):
    command = [str(Path(sys.executable).with_name("spark-submit")), "--master", "local[1]"]
    command += ["--conf", "spark.driver.bindAddress=127.0.0.1", "--conf", "spark.ui.enabled=false", str(SCRIPT)]
    command += ["--model", "model", "--input", "few.parquet", "--output", "submitted"]
    environment = place.environment | ENVIRONMENT
    done = subprocess.run(command, cwd=place.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = pq.read_table(place.folder / "submitted").sort_by("id")
    assert found.column_names == ["id", "compressed"]
    np.testing.assert_array_equal(np.stack(found["compressed"].to_numpy()), compressed(place, "few.parquet"))
