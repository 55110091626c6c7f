"""What the README quotes stands in the results that it names."""

import pytest

from tests.processes import ROOT

# In a cell of what was not measured.
NOTHING = ""


def rows_of(lines: list[str]) -> list[list[str]]:
    """The cells of tables in Markdown, headers included."""
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def first_table_under(heading: str) -> list[list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    table = next(block for block in text.split("\n\n") if block.startswith("|"))
    return rows_of(table.splitlines())[2:]


def firsts(row: list[str]) -> set[str]:
    """Its numbers without their deviations."""
    return {cell.split(" ")[0] for cell in row}


@pytest.fixture(scope="module")
def results() -> list[list[str]]:
    files = [ROOT / "experiments" / "results" / name / "table.md" for name in ("best", "neftune")]
    return [row for file in files for row in rows_of(file.read_text(encoding="utf-8").splitlines())]


@pytest.mark.parametrize("quoted", first_table_under("## What 32 numbers cost"), ids=", ".join)
def test_what_32_numbers_cost(quoted, results):
    """Bytes, Spearman and gains, and the neighbours, all of one row of the results."""
    _, *exact, neighbours = quoted
    assert [row for row in results if {*exact} - {NOTHING} <= {*row} and neighbours in firsts(row)]


@pytest.mark.parametrize("quoted", first_table_under("## A better recipe"), ids=", ".join)
def test_a_better_recipe_and_what_it_is_compared_with(quoted, results):
    """Bytes, Spearman on dev and on test, and there the neighbours and recall, all of one row of the results."""
    _, *exact, neighbours, recall = quoted
    assert [row for row in results if {*exact} <= {*row} and {neighbours, recall} - {NOTHING} <= firsts(row)]
