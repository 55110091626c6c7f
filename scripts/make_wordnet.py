"""Makes the unlabeled sentences of the package: `python scripts/make_wordnet.py FOLDER`.

FOLDER has the files data.noun, data.verb, data.adj and data.adv of WordNet 3.0, as in the archive WNdb-3.0.tar.gz of
https://wordnet.princeton.edu/download/current-version or in Debian's package wordnet-base. A third of the sentences are
definitions after their term ("wean: gradually deprive ..."), a third definitions of other terms alone, and a third
examples of usage. WordNet's license lets anyone use, copy, modify and distribute it with its notice; see
twinsqueeze/data/wordnet_license.txt.
"""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NUMBER = 24_000  # divisible by the three kinds
WORDS = range(4, 31)  # of a definition or an example
FILE = Path(__file__).resolve().parent.parent / "twinsqueeze" / "data" / "wordnet.txt"
# Terms that are explained, and the explanation.
LINE = re.compile(r"\d{8} \d\d \w [0-9a-f]{2} (?P<term>\S+) .*? \| (?P<gloss>.*)")
MARKER = re.compile(r"\((a|p|ip)\)$")  # of an adjective's place in a sentence


class Entry(NamedTuple):
    """A term with its definition, and examples of its usage."""

    term: str
    definition: str
    examples: list[str]


def read_entries(folder: Path) -> Iterator[Entry]:
    """Yields the entries of WordNet's files."""
    for part_of_speech in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part_of_speech}").read_text(encoding="utf-8").splitlines():
            if match := LINE.fullmatch(line):
                definition = match["gloss"].partition('"')[0].strip(" ;")
                examples = re.findall(r'"([^"]+)"', match["gloss"])
                yield Entry(MARKER.sub("", match["term"]).replace("_", " "), definition, examples)


def choose_sentences(entries: list[Entry], number: int) -> list[str]:
    """Returns distinct sentences of the three kinds in random order."""
    generator = random.Random(0)
    entries = [entry for entry in entries if len(entry.definition.split()) in WORDS]
    generator.shuffle(entries)
    half = len(entries) // 2
    examples = (_capitalize(each) for entry in entries for each in entry.examples if len(each.split()) in WORDS)
    kinds = (
        (f"{entry.term}: {entry.definition}" for entry in entries[:half]),
        (_capitalize(entry.definition) for entry in entries[half:]),
        examples,
    )
    sentences = [each for kind in kinds for each in generator.sample(sorted(set(kind)), number // len(kinds))]
    generator.shuffle(sentences)
    return sentences


def _capitalize(text: str) -> str:
    return text[0].upper() + text[1:]


if __name__ == "__main__":
    FILE.write_text("\n".join(choose_sentences(list(read_entries(Path(sys.argv[1]))), NUMBER)) + "\n", encoding="utf-8")
