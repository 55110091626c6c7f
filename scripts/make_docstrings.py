"""Makes pairs of the docstrings of installed packages: text of a kind that STS-B has not, and longer.

    python scripts/make_docstrings.py FOLDER OUTPUT [--pairs 3000] [--packages NAME ...]

A summary line and the paragraph below it are as a question and what answers it. OUTPUT is data as `dataset` takes it:
train and dev are FOLDER's own, and its test has pairs of a summary with its own paragraph, scored 5, and as many with
another's, scored 0. What a search finds there says what a compressor keeps of text that it was not trained on. The
packages come with TwinSqueeze; with the versions of requirements.txt the pairs are the same everywhere.
"""

import argparse
import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from twinsqueeze.data.dataset import NO_ROWS
from twinsqueeze.data.sentence_pairs import load_pairs

PACKAGES = ("matplotlib", "mlflow", "networkx", "pandas", "scipy", "sklearn", "sqlalchemy", "sympy", "torch")
# Words of a summary and, at least, of a paragraph; the share of its characters that are in words of letters alone.
SUMMARY, PARAGRAPH, PROSE = range(5, 31), 20, 0.68
# How numpydoc, Google and Sphinx begin what is a list and no prose.
SECTION = re.compile(r"(Parameters|Returns?|Args|Attributes|Raises|Examples?|Notes?|See Also|References|\.\.|:\w+|>>>)")


def docstrings(package: str) -> Iterator[str]:
    """Those of a package's modules, classes and functions but for its tests, in the order of its files."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"package {package} is not installed: pip install -r requirements.txt")
    root = Path(spec.origin).parent
    for file in sorted(root.rglob("*.py")):
        if any("test" in part for part in file.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # templates of code, and what is there to be refused
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (text := ast.get_docstring(node)):
                yield text


def summary_and_paragraph(docstring: str) -> tuple[str, str] | None:
    """The first line and the first paragraph of prose within the next three, None where it has none."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    summary, *below = (" ".join(paragraph.split()) for paragraph in paragraphs)
    prose = [paragraph for paragraph in below[:3] if _is_prose(paragraph)]
    return (summary, prose[0]) if prose and len(summary.split()) in SUMMARY else None


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    letters = sum(len(word) for word in words if word.strip(".,;:()`'\"").isalpha())
    code = SECTION.match(paragraph) or ">>>" in paragraph or "---" in paragraph
    return len(words) >= PARAGRAPH and letters > PROSE * len(paragraph) and not code


def pairs(packages: Sequence[str], number: int) -> pd.DataFrame:
    """`number` summaries, each with its own paragraph, scored 5, and with another's, scored 0."""
    found = [summary_and_paragraph(text) for package in packages for text in docstrings(package)]
    table = pd.DataFrame([pair for pair in found if pair], columns=["summary", "paragraph"])
    table = table.drop_duplicates("summary").drop_duplicates("paragraph")
    if number > len(table):
        raise SystemExit(f"the packages have {len(table):,} docstrings with a paragraph: ask for as many at most")
    summaries, paragraphs = table.sample(number, random_state=0).to_numpy().T
    own, others = (
        pd.DataFrame({"sentence1": summaries, "sentence2": texts, "score": score})
        for texts, score in ((paragraphs, 5.0), (np.roll(paragraphs, 1), 0.0))
    )
    return pd.concat([own, others])


def main() -> None:
    """Reads docstrings and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="data with train and dev")
    parser.add_argument("output", type=Path)
    parser.add_argument("--pairs", type=int, default=3000, help="summaries with a paragraph (default: %(default)s)")
    parser.add_argument(
        "--packages", nargs="+", default=PACKAGES, help=f"whose docstrings (default: {' '.join(PACKAGES)})"
    )
    options = parser.parse_args()
    test = pairs(options.packages, options.pairs)
    splits = load_pairs(options.folder, splits=("train", "dev")).splits
    options.output.mkdir(parents=True)
    for name, split in splits.items():
        pd.DataFrame(split.columns(NO_ROWS)).to_csv(options.output / f"{name}.csv", index=False)
    test.to_csv(options.output / "test.csv", index=False)
    print(f"{options.output}: {len(test):,} pairs to test on, half of them a summary with its own paragraph")


if __name__ == "__main__":
    main()
