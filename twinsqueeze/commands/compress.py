"""The command compress: files of vectors or texts in, a file of compressed vectors out."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from twinsqueeze.data.npy_rows import NpyRows
from twinsqueeze.data.row_blocks import Block, read_blocks
from twinsqueeze.data.table_files import STANDARD_INPUT
from twinsqueeze.errors import InputError
from twinsqueeze.inference.compression import VectorCompressor, encode_cached, is_truncated, load_compressor
from twinsqueeze.inference.writers import INDEX_SUFFIX, check_output, write_blocks
from twinsqueeze.model.checkpoint import CheckpointMetadata
from twinsqueeze.model.faiss_index import FaissIndex, check_index_support, num_lists
from twinsqueeze.model.sentence_transformer import token_limit
from twinsqueeze.recipe import bytes_per_vector
from twinsqueeze.registry.model_loader import ResolvedModel, load_sentence_transformer_for, resolve_model
from twinsqueeze.tracking.run import env_run_id, start_run
from twinsqueeze.types import AnyArray
from twinsqueeze.utils import console
from twinsqueeze.utils.compute import map_threaded, resolve_device
from twinsqueeze.utils.disk_cache import DiskCache
from twinsqueeze.utils.files import expand_user, file_sha256, is_dir, is_file
from twinsqueeze.utils.signals import check_interrupted
from twinsqueeze.utils.text import escape_markdown

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CompressedBlocks = Generator[tuple[Block, AnyArray]]


@dataclass(frozen=True)
class CompressOptions:
    """The command's options; None for the only possible column, and for the encoder of the training."""

    input: str
    model: str
    output: Path
    precision: str = "auto"
    format: str = "auto"
    column: str | None = None
    encoder: str | None = None
    device: str = "auto"
    ivf: str = "none"
    overwrite: bool = False

    @property
    def source_name(self) -> str:
        """The input in messages."""
        return "standard input" if self.input == STANDARD_INPUT else self.input


def compress(options: CompressOptions) -> None:
    """Compress a file or a folder of files; row i of the output belongs to row i of the input."""
    source, output = expand_user(options.input), expand_user(options.output).absolute()
    check_output(output, overwrite=options.overwrite)
    if is_file(source) and output.exists() and output.samefile(source):
        raise InputError(f"output {str(output)!r} is the input: name another file")
    if is_dir(source) and output.resolve().is_relative_to(source.resolve()):
        raise InputError(f"output {str(output)!r} is in the input folder: name another folder")
    blocks = read_blocks(options.input, options.format, options.column, lambda how: console.info(f"compressing {how}"))
    first = next(blocks)
    resolved = resolve_model(options.model)
    compressor, metadata = load_compressor(resolved.checkpoint, options.model, options.precision)
    index = _build_index(compressor, options)
    if isinstance(first.rows, list):
        model, fingerprint = _load_text_model(options, resolved, metadata)
        compressed = _compress_texts(chain([first], blocks), model, fingerprint, compressor)
    else:
        _check_vectors(first.rows, compressor, options)

        def compress_block(block: Block) -> AnyArray:
            return compressor.compress(np.asarray(block.rows), options.source_name, block.first_row)

        # One thread per core, each of which takes its block through all layers.
        compressed = map_threaded(chain([first], blocks), compress_block, torch.get_num_threads())
    network, precision = compressor.network, compressor.precision
    about = {"model": options.model, "precision": precision, "dim": network.dim, "int8_ranges": compressor.ranges}
    with closing(_show_progress(compressed, first.unit)) as rows:
        num_rows = write_blocks(output, rows, about, index)
    num_bytes = bytes_per_vector(precision, network.dim, network.num_codes)
    stored = "product codes" if precision == "product" else precision
    size = f"{network.dim} dimensions as {stored}, {num_bytes} bytes each"
    if (count := num_lists(options.ivf, num_rows)) > 1:
        size += f", in {count:,} lists"
    summary = f"{num_rows:,} rows of {options.source_name} compressed to {size}: {output}"
    console.print_result(summary)
    if env_run_id():  # `mlflow run` has made a run for this command
        with start_run(f"compress-{source.name}", "compression") as run:
            run.set_description(escape_markdown(summary))


def _build_index(compressor: VectorCompressor, options: CompressOptions) -> FaissIndex | None:
    """Return the empty index that the output is to hold, or None for another kind of output."""
    if options.output.suffix != INDEX_SUFFIX:
        if options.ivf != "none":
            raise InputError(f"ivf is for indexes, and output {str(options.output)!r} does not end in {INDEX_SUFFIX}")
        return None
    check_index_support(compressor.network, options.ivf, options.model)
    return compressor.build_index(options.ivf)


def _check_vectors(vectors: AnyArray | NpyRows, compressor: VectorCompressor, options: CompressOptions) -> None:
    expected, dim = compressor.network.input_dim, vectors.shape[1]
    if dim != expected:
        raise InputError(
            f"model {options.model!r} compresses vectors of {expected} numbers, and those of {options.source_name} "
            f"have {dim}: name the model that was trained for them"
        )
    if vectors.dtype.newbyteorder("=") != np.float32:
        console.info(f"{options.source_name} holds {vectors.dtype.name} numbers, which are cast to float32")


def _load_text_model(
    options: CompressOptions, resolved: ResolvedModel, metadata: CheckpointMetadata | None
) -> tuple["SentenceTransformer", str]:
    """Return encoder and compressor in one, and hex digits that change if its vectors would."""
    device = resolve_device(options.device).type
    model, encoder = load_sentence_transformer_for(
        options.model, resolved, encoder_name=options.encoder, device=device, allow_bfloat16=True
    )
    if options.encoder and metadata and encoder != metadata.encoder_fingerprint:
        console.warn(f"encoder {options.encoder!r} is not the one that the model was trained with")
    return model, f"{encoder}-{file_sha256(resolved.checkpoint)}"


def _compress_texts(
    blocks: Iterator[Block], model: "SentenceTransformer", fingerprint: str, compressor: VectorCompressor
) -> CompressedBlocks:
    cache, num_truncated = DiskCache(), 0
    for block in blocks:
        texts = cast(list[str], block.rows)
        num_truncated += sum(is_truncated(model, text) for text in texts)
        yield block, compressor.quantize(encode_cached(model, fingerprint, texts, cache))
    if num_truncated:
        console.warn(f"{num_truncated:,} texts were cut at the {token_limit(model)} tokens that the encoder takes")
    if cache.warnings:
        console.warn(cache.warnings[0])


def _show_progress(compressed: CompressedBlocks, unit: str) -> Generator[AnyArray]:
    """Yield the compressed rows, and report the progress after each block is written."""
    with closing(compressed), console.progress("compressing", unit) as update:
        for block, rows in compressed:
            check_interrupted()
            yield rows
            update(block.position, block.total, {})
