"""The guides to searches do what they print, with a linear model as the champion."""

import shlex

import numpy as np
import pytest

from scripts.make_docs import BLOCK, words
from tests.helpers.commands import ROOT
from tests.helpers.models import metadata_for, product_network, write_model
from tests.helpers.vectors import unit_vectors
from twinsqueeze.model.precision import int8_calibration_ranges

VECTORS = unit_vectors(10_000, 64)
CHAMPION = "models:/twinsqueeze@champion"


@pytest.mark.parametrize(
    "guide",
    ["faiss.md", "databases.md", pytest.param("vector-search.md", marks=pytest.mark.slow)],  # LanceDB is heavy
)
def test_the_blocks_of_a_guide_print_what_it_shows(guide, workplace, tiny_encoder, monkeypatch, capsys):
    monkeypatch.chdir(workplace.folder)
    np.save("vectors.npy", VECTORS)
    ranges = int8_calibration_ranges(VECTORS[:, :32])
    write_model(workplace.folder / "champion", product_network(64), metadata_for(tiny_encoder, ranges))
    text = (ROOT / "docs" / "guides" / guide).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks
    for block in blocks:
        if block[1] == "python":
            exec(compile(block["code"], guide, "exec"), {})
            printed = capsys.readouterr().out
        else:
            lines = block["code"].replace(CHAMPION, "champion").splitlines()
            printed = "".join(workplace.run(*shlex.split(line)[3:]).stdout for line in lines)
            printed = printed.replace(str(workplace.folder), "/home/you/twinsqueeze")
        assert words(printed) == words(block["output"])
        if block[1] == "python":  # rows that are found
            assert printed == block["output"]
