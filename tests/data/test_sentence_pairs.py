import doctest
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.helpers import hub
from twinsqueeze.data import sentence_pairs
from twinsqueeze.data.sentence_pairs import DEMO_FOLDER, SPLITS, load_pairs
from twinsqueeze.errors import InputError

# Sentences that CSV readers take for missing values or break.
ROWS = [
    ("A man is playing a guitar.", "None", 0.0),
    ("NA", 'He said "no, thanks".', 2.5),
    ("two\nlines", "emoji \U0001f600 and naïve", 5.0),
    ("null", "007", 1.2345),
]


def frame(rows=ROWS):
    return pd.DataFrame(rows, columns=["sentence1", "sentence2", "score"])


def write(folder: Path, suffix: str, rows=ROWS, names=SPLITS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name}{suffix}"
        if suffix == ".parquet":
            frame(rows).to_parquet(path)
        elif suffix == ".jsonl":
            frame(rows).to_json(path, orient="records", lines=True)
        else:
            frame(rows).to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    data = load_pairs(str(write(tmp_path / "mine", suffix)))
    assert (data.name, data.notice) == ("mine", None)
    for split in SPLITS:
        pairs = data.splits[split]
        assert list(zip(pairs.sentence1, pairs.sentence2, pairs.scores, strict=True)) == ROWS
        assert pairs.scores.dtype == np.float64
    assert data.digest == load_pairs(str(write(tmp_path / "csv", ".csv"))).digest


def test_validation_is_dev(tmp_path):
    write(tmp_path, ".csv", names=["train", "validation", "test"])
    assert len(load_pairs(str(tmp_path)).splits["dev"]) == 4


def test_only_the_splits_asked_for_are_opened(tmp_path):
    write(tmp_path, ".csv", names=["train", "dev"])
    (tmp_path / "test.csv").write_bytes(b"\xff\xfe broken")
    data = load_pairs(str(tmp_path), splits=("train", "dev"))
    assert list(data.splits) == ["train", "dev"]
    write(tmp_path, ".csv", names=["test"])
    assert load_pairs(str(tmp_path)).digest == data.digest


def test_digest_follows_order_text_and_score_but_no_rounding(tmp_path):
    def digest(rows):
        return load_pairs(str(write(tmp_path, ".parquet", rows))).digest

    nudged = [(a, b, s + (1e-9 if s == 2.5 else 0)) for a, b, s in ROWS]
    assert digest(nudged) == digest(ROWS)
    others = [ROWS[::-1], [("changed", *ROWS[0][1:]), *ROWS[1:]], [(*ROWS[0][:2], 0.001), *ROWS[1:]]]
    assert len({digest(rows) for rows in [ROWS, *others]}) == 4


def test_a_changed_file_with_the_same_mtime_is_read_again(tmp_path):
    before = load_pairs(str(write(tmp_path, ".csv")))
    stat = (tmp_path / "train.csv").stat()
    write(tmp_path, ".csv", [("A man is playing a guitar!", *ROWS[0][1:]), *ROWS[1:]])
    os.utime(tmp_path / "train.csv", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_pairs(str(tmp_path)).digest != before.digest


def test_a_scale_that_ends_at_one_needs_score_max(tmp_path):
    write(tmp_path, ".csv", [("a", "b", 0.2), ("c", "d", 1.0)])
    with pytest.raises(InputError, match="score_max=1"):
        load_pairs(str(tmp_path))
    scores = load_pairs(str(tmp_path), score_max=1).splits["train"].scores
    np.testing.assert_allclose(scores, [1, 5])


GOOD = 'sentence1,sentence2,score\n"a","b",1\n"c","d",5\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),  # not even a header
        ("sentence1,sentence2,score\n", "train of dataset .* has no rows"),
        ("sentence1,sentence2,score\na,b,3\n", "has one row"),  # a correlation needs two
        ("sentence1,sentence2,score\na,b,3\nc,d,3\n", "all scores are 3, so no correlation"),
        ("sentence1,sentence2\na,b\n", "lacks the column score; its columns are sentence1, sentence2"),
        ("sentence1,sentence2,score\na,b,3\nc,d,nan\n", "row 2: score 'nan' is not a finite number"),
        ("sentence1,sentence2,score\na,b,3\nc,d,inf\n", "row 2: score 'inf' is not a finite number"),
        ("sentence1,sentence2,score\na,b,\nc,d,2\n", "row 1: score '' is not a finite number"),
        ("sentence1,sentence2,score\na,b,high\nc,d,2\n", "row 1: score 'high' is not a finite number"),
        ("sentence1,sentence2,score\na,b,5.1\nc,d,2\n", "row 1: score 5.1 is outside the scale from 0 to 5"),
        ("sentence1,sentence2,score\na,b,-1\nc,d,2\n", "row 1: score -1 is outside"),
        ("sentence1,sentence2,score\na,,4\nc,d,2\n", "row 1: sentence2 is empty"),
        ('sentence1,sentence2,score\na,b,4\n" \t",d,2\n', "row 2: sentence1 is empty"),  # blanks are no sentence
        (GOOD.encode() + b"\xe9,b,3\n", "is not UTF-8"),  # Latin-1
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, content, message):
    write(tmp_path, ".csv", names=["dev", "test"])
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "train.csv").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        load_pairs(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", b'{"sentence1": "a", '),  # cut off
        ("train.parquet", b"PAR1 and no more"),
        ("train.jsonl", b'{"sentence1": null, "sentence2": "b", "score": 3}\n{"sentence1": "c", "sentence2": "b"}'),
        ("train.jsonl", b'{"sentence1": 7, "sentence2": "b", "score": 3}\n{"sentence1": 8, "sentence2": "b"}'),
    ],
)
def test_broken_files_of_other_formats_are_refused_in_one_line(tmp_path, name, content):
    write(tmp_path, ".csv", names=["dev", "test"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="train") as caught:
        load_pairs(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("./nowhere", "not found: pass stsb, demo"),
        ("/no/such/folder", "not found: pass stsb, demo"),
        ("~/no/such/folder", "not found: pass stsb, demo"),
        ("with\nnewline", "not found: pass stsb, demo"),
        ("no-such-dataset", r"cannot be loaded from the Hub or its cache \(HF_HUB_OFFLINE is set"),
    ],
)
def test_an_unknown_dataset_is_one_line(dataset, message):
    with pytest.raises(InputError, match=message) as caught:
        load_pairs(dataset)
    assert "\n" not in str(caught.value)


def test_missing_and_duplicate_splits_are_refused(tmp_path):
    write(tmp_path, ".csv", names=["train", "dev"])
    with pytest.raises(InputError, match="lacks the split test: add one of the files test"):
        load_pairs(str(tmp_path))
    write(tmp_path, ".jsonl", names=["train"])
    with pytest.raises(InputError, match="two files for the split train, "):
        load_pairs(str(tmp_path))


@pytest.mark.parametrize("score_max", [0, -1, float("nan"), float("inf")])
def test_score_max_must_be_finite_and_positive(score_max):
    with pytest.raises(InputError, match="score_max must be a finite number above 0"):
        load_pairs("demo", score_max=score_max)


def test_unknown_splits_are_refused():
    with pytest.raises(InputError, match="split must be one of train, dev, test, not 'eval'"):
        load_pairs("demo", splits=["eval"])


def test_the_example_in_the_docstring_is_true():
    result = doctest.testmod(sentence_pairs)
    assert result.attempted > 0
    assert result.failed == 0


# The Hub's client reads its settings when it is imported, so each of these tests starts a process.

PROGRAM = """
import json, sys, time
from twinsqueeze.errors import InputError
from twinsqueeze.data.sentence_pairs import load_pairs
start = time.monotonic()
try:
    data = load_pairs(sys.argv[1])
    outcome = {"name": data.name, "source": data.source, "digest": data.digest, "notice": data.notice,
               "test": data.splits["test"].digest, "rows": [len(pairs) for pairs in data.splits.values()]}
except InputError as error:
    outcome = {"error": str(error)}
print(json.dumps(outcome | {"seconds": time.monotonic() - start}))
"""


def load_in_new_process(dataset: str, endpoint: str, home: Path) -> dict:
    environment = {k: v for k, v in os.environ.items() if k not in {"HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"}}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, dataset],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture
def repository(tmp_path):
    """STS-B as it lies on the Hub: parquet files, scores as s/5, dev called validation."""
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: cc\n---\nA small stand-in.\n")
    for name in ("train", "validation", "test"):
        rows = [(f"{name} {a}", b, s / 5) for a, b, s in ROWS]
        frame(rows).to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def silent_server():
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def test_the_hubs_rows_equal_those_of_files_and_are_cached(tmp_path, repository, silent_server, closed_port):
    with hub.serve("sentence-transformers/stsb", repository) as endpoint:
        online = load_in_new_process("stsb", endpoint, tmp_path / "home")
        by_id = load_in_new_process("sentence-transformers/stsb", endpoint, tmp_path / "home")
    assert online["name"] == by_id["name"] == "stsb"
    assert online["source"] == "https://huggingface.co/datasets/sentence-transformers/stsb"
    assert online["rows"] == [4, 4, 4]

    for name, alias in (("train", "train"), ("dev", "validation"), ("test", "test")):
        write(tmp_path / "files", ".csv", [(f"{alias} {a}", b, s) for a, b, s in ROWS], names=[name])
    files = load_pairs(str(tmp_path / "files"))
    assert (online["digest"], online["test"]) == (files.digest, files.splits["test"].digest)

    for endpoint in (closed_port, silent_server):  # cached before, offline now
        for dataset in ("stsb", "auto"):
            offline = load_in_new_process(dataset, endpoint, tmp_path / "home")
            assert (offline["name"], offline["digest"], offline["notice"]) == ("stsb", online["digest"], None)


@pytest.mark.parametrize("kind", ["closed_port", "silent_server"])
def test_without_the_hub_stsb_is_refused_and_auto_is_demo(kind, request, tmp_path):
    endpoint = request.getfixturevalue(kind)
    refused = load_in_new_process("stsb", endpoint, tmp_path / "home")
    assert refused["error"].startswith("dataset 'sentence-transformers/stsb' cannot be loaded from the Hub")
    auto = load_in_new_process("auto", endpoint, tmp_path / "home")
    assert auto["name"] == "demo"
    assert "STS-B is not available" in auto["notice"]
    assert "no benchmark" in auto["notice"]
    for outcome in (refused, auto):
        assert outcome["seconds"] < 5 + 4  # 5 to decide, the rest to import and to read the demo


def test_a_missing_dataset_or_split_of_the_hub_is_one_line(tmp_path, repository):
    with hub.serve("someone/pairs", repository) as endpoint:
        unknown = load_in_new_process("someone/else", endpoint, tmp_path / "home")
        (repository / "data" / "test-00000-of-00001.parquet").unlink()
        lacking = load_in_new_process("someone/pairs", endpoint, tmp_path / "other home")
    assert "dataset 'someone/else' cannot be loaded from the Hub" in unknown["error"]
    assert lacking["error"] == "dataset 'someone/pairs' lacks the split test; it has train, validation"


# The demo


def test_demo_is_large_has_all_scores_and_no_sentence_in_two_splits():
    data = load_pairs("demo")
    assert "no benchmark" in data.notice
    assert len(data.splits["train"]) >= 1500
    assert len(data.splits["dev"]) >= 300
    assert len(data.splits["test"]) >= 300
    sentences = {}
    for name, pairs in data.splits.items():
        assert len(set(np.round(pairs.scores))) == 6  # every level from 0 to 5
        sentences[name] = {text.casefold() for text in pairs.sentence1 + pairs.sentence2}
    assert not sentences["train"] & sentences["dev"]
    assert not sentences["train"] & sentences["test"]
    assert not sentences["dev"] & sentences["test"]


SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_demo_is_what_its_script_makes(tmp_path):
    script = SCRIPTS / "make_demo.py"
    subprocess.run([sys.executable, str(script), "--output", str(tmp_path)], check=True, capture_output=True)
    for name in SPLITS:
        assert (tmp_path / f"{name}.csv").read_bytes() == (DEMO_FOLDER / f"{name}.csv").read_bytes()


@pytest.fixture
def make_folds(tmp_path):
    """Run the script on 9 pairs, of which only 3, 4 and 5 share sentences."""
    rows = [(f"a{i}", f"b{i}", float(i % 6)) for i in range(9)]
    rows[4], rows[5] = ("a3", "c", 4.0), ("d", "c", 5.0)
    folder = write(tmp_path / "data", ".csv", rows)
    (folder / "test.csv").unlink()

    def make(*options):
        script = str(SCRIPTS / "make_folds.py")
        subprocess.run(
            [sys.executable, script, str(folder), str(tmp_path / "folds"), *options], check=True, capture_output=True
        )
        return rows

    return make


def test_folds_share_no_sentence_and_leave_out_no_pair(tmp_path, make_folds):
    rows = make_folds("--folds", "3")
    parts = []
    for number in range(3):
        fold = load_pairs(str(tmp_path / "folds" / str(number))).splits
        rest, part = ({*zip(s.sentence1, s.sentence2, s.scores, strict=True)} for s in (fold["train"], fold["test"]))
        assert rest | part == set(rows)
        assert not {text for row in rest for text in row[:2]} & {text for row in part for text in row[:2]}
        assert len(fold["dev"]) == len(rows)
        parts += part
    assert sorted(parts) == sorted(rows)


def test_folds_that_are_cut_at_rows_leave_out_of_train_what_shares_a_sentence(tmp_path, make_folds):
    rows = make_folds("--cuts", "4", "7")
    for number, test, left_out in ((0, {0, 1, 2, 3}, {4, 5}), (1, {4, 5, 6}, {3}), (2, {7, 8}, set())):
        fold = load_pairs(str(tmp_path / "folds" / str(number))).splits
        for name, wanted in (("test", test), ("train", set(range(9)) - test - left_out)):
            split = fold[name]
            assert {*zip(split.sentence1, split.sentence2, split.scores, strict=True)} == {rows[i] for i in wanted}
    assert not (tmp_path / "folds" / "3").exists()


PARAGRAPH = (
    "It has a paragraph number {} of plain words, which goes on for long enough to be taken for prose by who reads it."
)
PACKAGE = '''
def first():
    """Say what the first one does.

    {}

    Parameters
    ----------
    it : int
        Which is of no interest here, since a list of parameters is what a reader skips who is looking for words.
    """


class Second:
    """Say what the second one does.

    >>> Second().is_no_prose_since_it_is_code() and so_is_this_and_that_and_what_comes_below(it, too)

    {}
    """


def third():
    """Has no paragraph below it."""


def fourth():
    """Too short.

    {}
    """


def fifth():
    """Say what the second one does.

    {}
    """
'''


def test_pairs_of_docstrings_are_a_summary_with_its_own_paragraph_and_with_anothers(tmp_path):
    folder = write(tmp_path / "data", ".csv", [(f"a{i}", f"b{i}", float(i % 6)) for i in range(9)])
    package = tmp_path / "made_up_package"
    (package / "tests").mkdir(parents=True)
    wanted = [PARAGRAPH.format(i) for i in range(4)]
    (package / "__init__.py").write_text(PACKAGE.format(*wanted))
    (package / "tests" / "test_it.py").write_text(PACKAGE.format(*wanted).replace("Say", "Test"))
    (package / "broken.py").write_text("{{ a template }}")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{SCRIPTS.parent}"}

    def make(number: int) -> subprocess.CompletedProcess:
        command = [sys.executable, str(SCRIPTS / "make_docstrings.py"), str(folder), str(tmp_path / "made")]
        options = ["--packages", package.name, "--pairs", str(number)]
        return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)

    assert make(3).stderr == "the packages have 2 docstrings with a paragraph: ask for as many at most\n"
    assert make(2).returncode == 0
    test = load_pairs(str(tmp_path / "made")).splits["test"]
    rows = sorted(zip(test.scores, test.sentence1, test.sentence2, strict=True))
    first, second = (f"Say what the {which} one does." for which in ("first", "second"))
    assert rows == [
        (0, first, wanted[1]), (0, second, wanted[0]), (5, first, wanted[0]), (5, second, wanted[1]),
    ]  # fmt: skip


@pytest.mark.stsb
def test_stsb_has_its_published_size(stsb_folder):
    data = load_pairs(str(stsb_folder))
    assert [len(data.splits[name]) for name in SPLITS] == [5749, 1500, 1379]
    train = data.splits["train"]
    assert (train.sentence1[0], train.scores[0]) == ("A plane is taking off.", 5)
