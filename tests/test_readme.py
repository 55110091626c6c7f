"""What the README quotes stands in the results that it names."""

import pytest

from tests.processes import ROOT

NOT_MEASURED = ""


def rows_of(lines: list[str]) -> list[list[str]]:
    """The cells of tables in Markdown, headers included."""
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def first_table_under(heading: str) -> list[list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    table = next(block for block in text.split("\n\n") if block.startswith("|"))
    return rows_of(table.splitlines())[2:]


@pytest.fixture(scope="module")
def results() -> list[list[str]]:
    files = [ROOT / "experiments" / "results" / name / "table.md" for name in ("best", "neftune")]
    return [row for file in files for row in rows_of(file.read_text(encoding="utf-8").splitlines())]


@pytest.mark.parametrize("quoted", first_table_under("## A better recipe"), ids=", ".join)
def test_a_better_recipe_and_what_it_is_compared_with(quoted, results):
    """Bytes, Spearman on dev and on test, and there the neighbours and recall, all of one row of the results."""
    _, *exact, neighbours, recall = quoted
    rounded = {neighbours, recall} - {NOT_MEASURED}
    of_one = [row for row in results if set(exact) <= set(row) and rounded <= {cell.split(" ")[0] for cell in row}]
    assert of_one
