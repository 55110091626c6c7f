"""Readers of files on bytes that libFuzzer makes up: `python -m benchmarks.fuzz TARGET SECONDS`.

Needs atheris (pip install atheris), which the tests do without: their property-based tests call the same targets on
fewer inputs. What a reader may do with bytes is to give what they hold or to raise an `InputError` of one line;
anything else stops the run and leaves the bytes as a file crash-... in the working directory. Prints how many inputs
were tried.
"""

import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save

from twinsqueeze.errors import InputError

HEAD = "sentence1,sentence2,score\n"
# What a compressor's file says of itself.
PROVENANCE = json.dumps(
    dict.fromkeys(("dataset", "dataset_digest", "encoder_fingerprint", "version"), "0")
    | {"recipe": {}, "score_max": None, "int8_ranges": [[0.0, 0.0], [1.0, 1.0]]}
)


def pairs(data: bytes, folder: Path, suffix: str = "") -> None:
    """Scored pairs from a folder with one file; without a suffix the first byte chooses one."""
    from twinsqueeze.data.sentence_pairs import SUFFIXES, load_pairs

    suffix, data = (suffix, data) if suffix else _chosen(data, SUFFIXES)
    for old in folder.glob("dev.*"):
        old.unlink()
    (folder / f"dev{suffix}").write_bytes(data)
    _tolerate(lambda: load_pairs(f"{folder}/", splits=["dev"]))


def grids(data: bytes, folder: Path) -> None:
    """A grid's file."""
    from twinsqueeze.grid import load_grid

    file = folder / "grid.yaml"
    file.write_bytes(data)
    _tolerate(lambda: load_grid(str(file)))


def vectors(data: bytes, folder: Path, suffix: str = "") -> None:
    """Vectors or texts; without a suffix the first byte chooses one."""
    from twinsqueeze.data.row_blocks import read_blocks
    from twinsqueeze.data.table_files import FORMATS

    suffix, data = (suffix, data) if suffix else _chosen(data, FORMATS)
    file = folder / f"vectors.{suffix}"
    file.write_bytes(data)

    _tolerate(lambda: [np.array(block.rows) for block in read_blocks(str(file))])


def checkpoints(data: bytes, folder: Path) -> None:
    """A compressor's file, and what it makes of a vector."""
    import torch

    from twinsqueeze.model.checkpoint import read_checkpoint

    file = folder / "compressor.safetensors"
    file.write_bytes(data)

    def read() -> None:
        compressor, _ = read_checkpoint(file, "fuzzed")
        assert compressor.compress_as_stored(torch.ones(2, compressor.input_dim)).shape == (2, compressor.dim)

    _tolerate(read)


Target = Callable[[bytes, Path], None]
TARGETS: dict[str, Target] = {"pairs": pairs, "grids": grids, "vectors": vectors, "checkpoints": checkpoints}


def samples(target: str) -> list[bytes]:
    """Good files, to begin with."""
    if target == "pairs":
        line = '{"sentence1": "a", "sentence2": "b", "score": %d}\n'
        csv = [f"{HEAD}a,b,0\nc,d,5\n".encode(), f'{HEAD}"a ""x""\n",b,0.5\nNA,None,4\n'.encode()]
        return [*(b"\0" + text for text in csv), b"\2" + (line * 2 % (0, 5)).encode(), b"\3" + _parquet()]
    if target == "grids":
        return [yaml.safe_dump(content).encode() for content in ({"alpha": [0, 0.75], "seed": [0, 1]}, {"dim": 8})]
    if target == "vectors":
        array = io.BytesIO()
        np.save(array, np.ones((3, 4), np.float32))
        return [
            b"\0" + array.getvalue(),
            b"\2a,b\n1,2\n",
            b'\3{"a": [1, 2]}\n',
            b"\3[1, 2]\n",
            b"\4a text\n",
            b"\1" + _parquet(),
        ]
    layers = {"0.weight": np.ones((2, 4), np.float32), "0.bias": np.ones(2, np.float32)}
    return [save(layers), save(layers, {"twinsqueeze": PROVENANCE})]


def _parquet() -> bytes:
    import pandas as pd

    columns = {"sentence1": ["a", "c"], "sentence2": ["b", "d"], "score": [0.0, 5.0], "vector": [[1.0, 2.0]] * 2}
    return pd.DataFrame(columns).to_parquet()


def _chosen(data: bytes, choices: Sequence[str]) -> tuple[str, bytes]:
    return (choices[data[0] % len(choices)], data[1:]) if data else (choices[0], data)


def _tolerate(read: Callable[[], object]) -> None:
    """Calls; refusals are fine if they are a line."""
    try:
        read()
    except InputError as error:
        text = str(error)
        assert text, "a refusal without a reason"
        assert "\n" not in text, f"a refusal of several lines: {text!r}"
        assert len(text) < 2000, f"a refusal of {len(text)} characters"


def main() -> None:
    """Tries inputs on one target for some seconds."""
    import atheris

    name, seconds = sys.argv[1], int(sys.argv[2])
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder, atheris.instrument_imports(include=["twinsqueeze", "yaml"]):
        corpus, work = Path(folder, "corpus"), Path(folder, "work")
        corpus.mkdir()
        work.mkdir()
        for i, sample in enumerate(samples(name)):
            Path(corpus, str(i)).write_bytes(sample)
            target(sample, work)  # imports what it needs, instrumented
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={seconds}",
                "-timeout=20",
                "-max_len=8192",
                "-rss_limit_mb=6000",
                "-verbosity=0",
                "-print_final_stats=1",
                str(corpus),
            ],
            lambda data: target(data, work),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
