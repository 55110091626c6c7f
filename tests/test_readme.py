"""What the README quotes stands in the results that it names."""

from collections.abc import Iterator

import pytest

from tests.helpers.commands import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Its columns, by what they are called in results.
COLUMNS = {
    "bytes": "bytes",
    "dev Spearman": "dev Spearman",
    "dev Spearman gain": "gain on dev",
    "test Spearman": "test Spearman",
    "test Spearman gain": "gain on test",
    "test neighbor recall": "neighbor recall, test",
    "test recall@10": "recall@10, test",
}


def rows_of(text: str) -> Iterator[dict[str, str]]:
    """The rows of all tables in Markdown, cells by column."""
    for block in text.split("\n\n"):
        if block.startswith("|"):
            header, _, *rows = (
                [c.strip().strip("*") for c in line.strip("|").split("|")] for line in block.split("\n")
            )
            yield from (dict(zip(header, row, strict=True)) for row in rows)


def quoted(heading: str) -> list[dict[str, str]]:
    """The rows of the first table under a heading."""
    text = README.partition(f"\n{heading}\n")[2]
    return list(rows_of(next(block for block in text.split("\n\n") if block.startswith("|"))))


@pytest.fixture(scope="module")
def results() -> list[dict[str, str]]:
    files = [ROOT / "experiments" / "results" / name / "table.md" for name in ("best", "neftune")]
    return [row for file in files for row in rows_of(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "row",
    [*quoted("## What 32 numbers cost"), *quoted("## A better recipe")],
    ids=lambda row: f"{row['']}, {row['bytes']} bytes",
)
def test_a_row_is_one_of_the_results(row, results):
    """Every cell that says something; what is rounded to hundredths stands without its deviation."""
    wanted = {name: row[column] for name, column in COLUMNS.items() if row.get(column)}
    assert len(wanted) >= 4

    def says(found: str, value: str) -> bool:
        return found == value or (len(value) == len("0.00") and found.partition(" ")[0] == value)

    assert any(all(says(found.get(name, ""), value) for name, value in wanted.items()) for found in results)
