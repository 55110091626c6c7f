"""Runs the commands of README.md and docs/ and writes their output, and the README's table, into these files.

    python -m scripts.make_docs [--check | --tables]

A block of `sh` or `python` that a block of `text` follows is run in a copy of the checkout, and the `text` block
becomes what it prints on standard output. Pages are run in the order of mkdocs.yml and share the copy, as a reader
would. STS-B comes from the Hub, or from the folder TWINSQUEEZE_STSB. With TWINSQUEEZE_CACHE set to a folder, a second
run encodes nothing. --tables writes the table alone, in seconds.

--check writes nothing: it fails if a command fails or the words of a block have changed, whatever its numbers and its
paragraphs of scores. Scores do not matter then, so it takes minutes less: all data are a few demo pairs, and two pages
run at once.
"""

import argparse
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from scripts.docs_macros import ROOT, results_table
from tests.helpers import hub

BLOCK = re.compile(r"```(sh|python)\n(?P<code>(?:(?!```).)*?)```\n\n```text\n(?P<output>.*?)```\n", re.DOTALL)
TABLE = re.compile(r"(<!-- results: [^\n]*-->\n).*?(<!-- end of results -->)", re.DOTALL)
INSTALL = re.compile(r"^pip install [^&\n]*&& ")
# What differs between two runs: numbers, ids, the width of columns and rules.
VARYING = re.compile(r"[0-9a-f]{32}|[+-]?\d[\d,.]*")
# A paragraph with scores: another processor trains other last digits, and other rows are the best of their size.
SCORES = re.compile(r"\b[01]\.\d{4}\b")
# Pairs of a split and unlabeled sentences in a check. From 256 distinct sentences on codebooks can be fitted, and from
# 384 on the rotations of OPQ, which take seconds.
FEW_PAIRS = {"train": 160, "dev": 60, "test": 60}
FEW_SENTENCES = 300
# All pages use the runs of the first, and nothing else may run while the other shows that no record is left.
ALONE = ("README.md", "tracking-server.md")
# The page whose runs or files a page uses, besides README.md.
FOLLOWING = {
    "tune.md": "own-data.md",
    "register.md": "mlflow.md",
    "faiss.md": "compress-files.md",
    "vector-search.md": "compress-files.md",
    "databases.md": "compress-files.md",
}


@dataclass
class Runner:
    """Runs blocks in a copy of the checkout; a block that was run already is not run again."""

    folder: Path
    environment: dict[str, str]
    outputs: dict[str, str] = field(default_factory=dict)

    def run(self, language: str, code: str) -> str:
        """Returns what a block prints; exits with its error messages if it fails."""
        if code not in self.outputs:
            start = time.monotonic()
            shell = ["bash", "-euo", "pipefail", "-c", INSTALL.sub("", code)]
            command = [sys.executable, "-c", code] if language == "python" else shell
            done = subprocess.run(
                command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise SystemExit(f"{done.stdout}{done.stderr}\nfailed:\n{code}")
            print(f"{time.monotonic() - start:.1f} s\n{code}", flush=True)
            home = done.stdout.replace(str(self.folder.parent), "/home/you")
            self.outputs[code] = "".join(f"{line.rstrip()}\n" for line in home.strip("\n").split("\n"))
        return self.outputs[code]


def main() -> None:
    """Writes or checks the generated parts of README.md and docs/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if an output has other words")
    parser.add_argument("--tables", action="store_true", help="write the README's table alone")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    if arguments.check:
        check()
        return
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
    if not arguments.tables:
        with ExitStack() as stack:
            runner = Runner(*prepare(stack))
            for page in pages():
                update(page, runner, check=False)


def check() -> None:
    """Exits with the changes if the words of a block are not those of its output."""

    def changes(group: Sequence[Path]) -> list[str]:
        return [change for page in group for change in update(page, runner, check=True)]

    groups: dict[str, list[Path]] = {}
    for page in pages():
        groups.setdefault(FOLLOWING.get(page.name, page.name), []).append(page)
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        runner = Runner(*prepare(stack, small=True))
        stale = [change for name in ALONE for change in changes(groups.pop(name))]
        stale += [change for each in pool.map(changes, groups.values()) for change in each]
    if stale:
        raise SystemExit("\n".join([*stale, "run `python -m scripts.make_docs` and commit what it writes"]))


def pages() -> Iterator[Path]:
    """Yields README.md and the site's pages in the order of mkdocs.yml."""
    yield ROOT / "README.md"
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - text

    def leaves(node: Any) -> Iterator[str]:
        for child in node.values() if isinstance(node, dict) else node:
            yield from [child] if isinstance(child, str) else leaves(child)

    for page in leaves(config["nav"]):
        yield ROOT / "docs" / page


def with_table(text: str) -> str:
    """Returns the README's text with its table of results."""
    return TABLE.sub(lambda match: f"{match[1]}{results_table('headlines')}\n{match[2]}", text)


def update(page: Path, runner: Runner, *, check: bool) -> list[str]:
    """Runs the blocks of a page; writes their output, or returns how the words differ."""
    text = page.read_text(encoding="utf-8")
    changes: list[str] = []

    def replace(match: re.Match[str]) -> str:
        output = runner.run(match[1], match["code"])
        old, new = (words(each) for each in (match["output"], output))
        if old != new:
            changes.extend([f"{page.relative_to(ROOT)}: {match['code']}", *difflib.unified_diff(old, new, lineterm="")])
        return match[0].removesuffix(f"{match['output']}```\n") + f"{output}```\n"

    new = BLOCK.sub(replace, text)
    if not check:
        page.write_text(new, encoding="utf-8")
    return changes


def words(output: str) -> list[str]:
    """Returns the lines of an output without what varies between runs and processors."""
    paragraphs = (each.strip("\n") for each in output.split("\n\n") if not SCORES.search(each))
    lines = (VARYING.sub("0", line) for line in "\n\n".join(paragraphs).split("\n"))
    return [" ".join(re.sub(r"[─━-]{2,}", "-", line).split()) for line in lines]


def prepare(stack: ExitStack, *, small: bool = False) -> tuple[Path, dict[str, str]]:
    """Returns a copy of the checkout's files, and an environment with a store and a state of its own."""
    root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder = root / "twinsqueeze"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    stsb = shrink(folder, root / "stsb") if small else os.environ.get("TWINSQUEEZE_STSB")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "TWINSQUEEZE_"))}
    environment = inherited | {
        "COLUMNS": "80",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "TWINSQUEEZE_CACHE": os.environ.get("TWINSQUEEZE_CACHE", str(root / "cache")),
        "TWINSQUEEZE_STATE": str(root / "state"),
    }
    if small:
        environment |= {"OMP_NUM_THREADS": "1"}  # two pages share the cores
    if stsb:
        environment |= {"HF_ENDPOINT": stack.enter_context(serve_stsb(Path(stsb), root)), "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HOME": str(root / "hub")}
    return folder, environment


def shrink(checkout: Path, stsb: Path) -> Path:
    """Leaves few demo pairs and few unlabeled sentences in a copy of the checkout; makes a small folder of STS-B."""
    for preset in (checkout / "twinsqueeze" / "recipes").iterdir():
        text = re.sub(r"(?m)^(unlabeled_sentences:) \d+$", rf"\1 {FEW_SENTENCES}", preset.read_text(encoding="utf-8"))
        preset.write_text(text, encoding="utf-8")
    stsb.mkdir()
    for split, number in FEW_PAIRS.items():
        demo = checkout / "twinsqueeze" / "data" / "demo" / f"{split}.csv"
        pairs = pd.read_csv(demo).head(number)
        pairs.to_csv(demo, index=False)
        # Data are told apart by the order of dev; what was encoded and fitted is shared.
        (pairs[::-1] if split == "dev" else pairs).to_csv(stsb / f"{split}.csv", index=False)
    return stsb


def serve_stsb(stsb: Path, root: Path) -> Any:
    """Serves a folder with STS-B as the Hub does: scores from 0 to 1."""
    data = root / "served" / "sentence-transformers" / "stsb" / "data"
    data.mkdir(parents=True)
    for split, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        pairs = pd.read_csv(stsb / f"{split}.csv")
        pairs.assign(score=pairs["score"] / 5).to_parquet(data / f"{name}-00000-of-00001.parquet")
    return hub.serve(root / "served")


if __name__ == "__main__":
    main()
