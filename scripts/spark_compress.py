"""The command compress on Spark: `spark-submit scripts/spark_compress.py --help`."""

import re
import sys
from pathlib import Path

import click
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed on the driver

from twinsqueeze.data.table_columns import VECTORS
from twinsqueeze.errors import InputError
from twinsqueeze.inference.spark import compress_frame, select_frame_column


@click.command()
@click.option("--input", "source", required=True, help="Files of vectors or texts.")
@click.option("--format", "format_", default="parquet", show_default=True, help="parquet, orc, json, csv or text.")
@click.option("--model", required=True, help="A run's id, a model's URI or a folder of the driver's.")
@click.option("--output", required=True, help="A folder for .parquet files.")
@click.option("--column", help="Column to compress.  [default: the only possible one]")
@click.option("--precision", default="auto", show_default=True, help="float32, int8, product or binary.")
@click.option("--overwrite", type=bool, default=False, show_default=True, help="Replace an existing output.")
def main(
    source: str, format_: str, model: str, output: str, column: str | None, precision: str, overwrite: bool
) -> None:
    """Add a column of compressed vectors to what Spark reads; vectors that were compressed are left out."""
    session = SparkSession.builder.appName("twinsqueeze compress").getOrCreate()
    try:
        csv: dict[str, bool | str] = {"header": True, "multiLine": True, "escape": '"'} if format_ == "csv" else {}
        frame = session.read.format(format_).options(**csv).load(source)
        column, kind = select_frame_column(frame, column)
        compressed = compress_frame(frame, model, column=column, precision=precision)
        compressed = compressed.drop(column) if kind == VECTORS else compressed
        compressed.write.mode("overwrite" if overwrite else "error").parquet(output)
    except (InputError, PySparkException, Py4JJavaError) as error:
        messages = re.findall(r"InputError: (.*)", str(error)) or [str(error)]
        raise click.ClickException(" ".join(messages[-1].split())[:300]) from error
    finally:
        session.stop()


main()
