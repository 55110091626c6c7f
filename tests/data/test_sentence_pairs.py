import json
import math
import os
import runpy
import socket
import sys
import threading
from pathlib import Path
from unittest.mock import Mock
from urllib.error import HTTPError

import numpy as np
import pandas as pd
import pytest

from tests.helpers import hub, refusals
from tests.helpers.commands import ROOT
from tests.helpers.forks import ForkedProcess
from tests.helpers.pairs import rows_of
from tests.helpers.servers import free_port
from tests.helpers.tables import write_frame
from twinsqueeze.data import hub as hub_client
from twinsqueeze.data.dataset import SPLITS
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.data.sentence_pairs import COLUMNS, DEMO_FOLDER, load_pairs

# Sentences that CSV readers take for missing values or break.
ROWS = [
    ("A man is playing a guitar.", "None", 0.0),
    ("NA", 'He said "no, thanks".', 2.5),
    ("two\nlines", "emoji \U0001f600 and naïve", 5.0),
    ("null", "007", 1.2345),
]


def write(folder: Path, suffix: str, rows=ROWS, names=SPLITS) -> str:
    """Writes the same rows as every split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_frame(pd.DataFrame(rows, columns=COLUMNS), folder / f"{name}{suffix}")
    return str(folder)


def refusal(dataset, **options):
    return refusals.refusal(load_pairs, str(dataset), **options)


def test_every_format_gives_the_same_rows(tmp_path):
    digests = set()
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        data = load_pairs(write(tmp_path / suffix / "mine", suffix))
        assert (data.name, data.notice) == ("mine", None)
        for split in SPLITS:
            assert rows_of(data.splits[split]) == ROWS
            assert data.splits[split].scores.dtype == np.float64
        digests.add(data.digest)
    assert len(digests) == 1


def test_only_the_requested_splits_are_opened(tmp_path):
    write(tmp_path, ".csv", names=["train", "validation"])
    assert "lacks the split test: add one of the files test" in refusal(tmp_path)
    (tmp_path / "test.csv").write_bytes(b"\xff\xfe broken")
    data = load_pairs(str(tmp_path), splits=("train", "dev"))
    assert list(data.splits) == ["train", "dev"]
    write(tmp_path, ".csv", names=["test"])
    assert load_pairs(str(tmp_path)).digest == data.digest


def test_the_digest_depends_on_order_text_and_score_but_not_on_rounding_or_the_time(tmp_path):
    def digest(rows):
        write(tmp_path, ".parquet", rows)
        os.utime(tmp_path / "train.parquet", (0, 0))
        return load_pairs(str(tmp_path)).digest

    nudged = [(a, b, s + (1e-9 if s == 2.5 else 0)) for a, b, s in ROWS]
    assert digest(nudged) == digest(ROWS)
    others = [ROWS[::-1], [("changed", *ROWS[0][1:]), *ROWS[1:]], [(*ROWS[0][:2], 0.001), *ROWS[1:]]]
    assert len({digest(rows) for rows in [ROWS, *others]}) == 4


def test_a_scale_that_ends_at_one_needs_score_max(tmp_path):
    write(tmp_path, ".csv", [("a", "b", 0.2), ("c", "d", 1.0)])
    assert "score_max=1" in refusal(tmp_path)
    scores = load_pairs(str(tmp_path), score_max=1).splits["train"].scores
    np.testing.assert_allclose(scores, [1, 5])


HEADER = b"sentence1,sentence2,score\n"
JSON_LINE = b'{"sentence1": %s, "sentence2": "b", "score": %d}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),  # not even a header
        (HEADER, "has no rows"),
        (HEADER + b"a,b,3\n", "has one row"),  # a correlation needs two
        (HEADER + b"a,b,3\nc,d,3\n", "all scores are 3, so no correlation"),
        (b"sentence1,sentence2\na,b\n", "lacks the column score; its columns are sentence1, sentence2"),
        (HEADER + b"a,b,3\nc,d,nan\n", "row 2: score 'nan' is not a finite number"),
        (HEADER + b"a,b,3\nc,d,inf\n", "row 2: score 'inf' is not a finite number"),
        (HEADER + b"a,b,\nc,d,2\n", "row 1: score '' is not a finite number"),
        (HEADER + b"a,b,5.1\nc,d,2\n", "row 1: score 5.1 is outside the scale from 0 to 5"),
        (HEADER + b"a,b,-1\nc,d,2\n", "row 1: score -1 is outside"),
        (HEADER + b"a,,4\nc,d,2\n", "row 1: sentence2 is empty"),
        (HEADER + b'a,b,4\n" \t",d,2\n', "row 2: sentence1 is empty"),  # blanks only
        (JSON_LINE % (b"null", 3) + JSON_LINE % (b'"c"', 2), "row 1: sentence1 is None, not a text"),
        (JSON_LINE % (b'"\\ud800"', 3) + JSON_LINE % (b'"c"', 2), "sentence1 has half of a surrogate pair"),
        (JSON_LINE % (b'"[0.1, 0.2]"', 3) + JSON_LINE % (b'"c"', 2), "sentence1 is '[0.1, 0.2]', not a text: remove"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, content, message):
    write(tmp_path, ".csv", names=["dev", "test"])
    (tmp_path / f"train.{'jsonl' if content.startswith(b'{') else 'csv'}").write_bytes(content)
    refused = refusal(tmp_path)
    assert "train" in refused
    assert message in refused


def test_an_unknown_dataset_or_option_is_refused_in_one_line():
    for dataset in ("./nowhere", "/no/such/folder", "~/no/such/folder", "with\nnewline"):
        assert "not found: pass stsb, demo" in refusal(dataset)
    assert "cannot be loaded from the Hub or its cache (HF_HUB_OFFLINE is set" in refusal("no-such-dataset")
    assert "split must be one of train, dev, test, not 'eval'" in refusal("demo", splits=["eval"])
    for score_max in (0, -1, np.nan, np.inf, math.ulp(0)):
        assert "score_max must be a finite number above 0" in refusal("demo", score_max=score_max)


# The Hub's client reads its settings when it is imported: each set of settings needs a process of its own.
LOAD = """
import json, sys
from twinsqueeze.data import hub
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.errors import InputError
hub.PROBE_TIMEOUT = float(sys.argv[1])
for dataset in sys.argv[2:]:
    try:
        data = load_dataset(dataset)
        print(json.dumps([data.name, data.source, data.notice, data.digest, data.splits["test"].digest]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def load_in_new_process(endpoint: str, home: Path, *datasets: str, timeout: float = 4.5) -> list:
    environment = {k: v for k, v in os.environ.items() if k not in {"HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"}}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    with ForkedProcess(["-c", LOAD, str(timeout), *datasets], environment, ROOT) as process:
        output, errors = process.finish()
    assert errors == ""
    return [json.loads(line) for line in output.splitlines()]


def test_datasets_of_the_hub_are_cached_and_auto_is_the_demo_without_them(tmp_path):
    served, local = tmp_path / "hub", tmp_path / "local"
    for split in ("train", "validation", "test"):
        rows = [(f"{split} {a}", b, score) for a, b, score in ROWS]
        scaled = [(a, b, score / 5) for a, b, score in rows]  # as STS-B has them on the Hub
        write(served / "sentence-transformers/stsb/data", "-00000-of-00001.parquet", scaled, [split])
        write(local, ".csv", rows, [split])
    write(served / "someone/incomplete/data", "-00000-of-00001.parquet", names=["train", "validation"])
    questions = pd.DataFrame([(f"what is {i}?", f"it is {i}") for i in range(60)], columns=["question", "answer"])
    others = {"questions": questions, "texts": questions[["answer"]], "numbers": pd.DataFrame({"text": [1.5, 2.5]})}
    for name, table in others.items():
        (served / "someone" / name / "data").mkdir(parents=True)
        write_frame(table, served / "someone" / name / "data/train.csv")

    ids = ["stsb", "sentence-transformers/stsb", *(f"someone/{name}" for name in ("else", "incomplete", *others))]
    with hub.serve(served) as endpoint:
        stsb, by_id, unknown, incomplete, *found, numbers = load_in_new_process(endpoint, tmp_path / "cached", *ids)
    pairs = load_pairs(str(local))
    source = "https://huggingface.co/datasets/sentence-transformers/stsb"
    assert stsb == by_id == ["stsb", source, None, pairs.digest, pairs.splits["test"].digest]
    for id_, loaded in zip(("someone/questions", "someone/texts"), found, strict=True):
        data = load_dataset(str(served / id_))
        source = f"https://huggingface.co/datasets/{id_}"
        assert loaded == [id_, source, None, data.digest, data.splits["test"].digest]
    assert "dataset 'someone/else' cannot be loaded from the Hub" in unknown
    assert incomplete == "dataset 'someone/incomplete' lacks the split test; it has train, validation"
    assert numbers.startswith("someone/numbers/train.parquet has neither texts nor lists of numbers")

    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts connections and never answers
        silent = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert load_in_new_process(silent, tmp_path / "cached", "stsb", "auto", timeout=0.05) == [stsb, stsb]
    closed = f"http://127.0.0.1:{free_port()}"
    refused, (name, _, notice, *_) = load_in_new_process(closed, tmp_path / "empty", "stsb", "auto")
    assert refused.startswith("dataset 'sentence-transformers/stsb' cannot be loaded from the Hub")
    assert name == "demo"
    assert "STS-B is not available" in notice
    assert "no benchmark" in notice


def test_the_hub_is_unavailable_after_the_timeout_or_an_error_of_the_server(monkeypatch):
    """5 seconds are documented. Here the timeout is shorter, and the resolution of the Hub's name never ends."""
    assert hub_client.PROBE_TIMEOUT < 5
    monkeypatch.setattr(hub_client, "PROBE_TIMEOUT", 0.05)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "5")
    test_ended = threading.Event()
    monkeypatch.setattr(hub_client, "urlopen", lambda *_, **__: test_ended.wait())
    assert "does not answer" in hub_client.hub_unavailable_reason.__wrapped__()
    test_ended.set()
    monkeypatch.setattr(hub_client, "PROBE_TIMEOUT", 4.5)
    for code, is_available in ((404, True), (503, False)):
        monkeypatch.setattr(hub_client, "urlopen", Mock(side_effect=HTTPError("http://hub", code, "", None, None)))
        assert (hub_client.hub_unavailable_reason.__wrapped__() is None) == is_available


def test_the_demo_is_large_has_all_scores_and_no_sentence_in_two_splits():
    data = load_pairs("demo")
    assert "no benchmark" in data.notice
    seen = set()
    for name, minimum in (("train", 1500), ("dev", 300), ("test", 300)):
        pairs = data.splits[name]
        assert len(pairs) >= minimum
        assert len(set(np.round(pairs.scores))) == 6  # every level from 0 to 5
        sentences = {text.casefold() for text in pairs.sentence1 + pairs.sentence2}
        assert not sentences & seen
        seen |= sentences


@pytest.fixture
def run_script(monkeypatch):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(ROOT / "scripts")  # as for `python scripts/name.py`
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")

    return run


def test_make_demo_writes_the_bundled_files(tmp_path, run_script):
    run_script("make_demo.py", "--output", tmp_path)
    for name in SPLITS:
        assert (tmp_path / f"{name}.csv").read_bytes() == (DEMO_FOLDER / f"{name}.csv").read_bytes()


@pytest.fixture
def make_folds(tmp_path, run_script):
    """Returns a function that cuts pairs into 3 folds, and returns each fold's splits."""

    def make(rows, *options):
        run_script("make_folds.py", write(tmp_path, ".csv", rows, ["train", "dev"]), tmp_path / "folds", *options)
        assert sorted(path.name for path in (tmp_path / "folds").iterdir()) == ["0", "1", "2"]
        folds = [load_pairs(str(tmp_path / "folds" / name)).splits for name in ("0", "1", "2")]
        return [{name: rows_of(split) for name, split in fold.items()} for fold in folds]

    return make


# Pairs 3, 4 and 5 share sentences.
LINKED = [(f"a{i}", f"b{i}", float(i % 6)) for i in range(9)]
LINKED[4:6] = [("a3", "c", 4.0), ("d", "c", 5.0)]


def test_folds_share_no_sentence_and_leave_out_no_pair(make_folds):
    folds = make_folds(LINKED, "--folds", "3")
    for fold in folds:
        assert sorted(fold["train"] + fold["test"]) == sorted(LINKED)
        train, test = ({text for row in fold[name] for text in row[:2]} for name in ("train", "test"))
        assert not train & test
        assert fold["dev"] == LINKED
    assert sorted(row for fold in folds for row in fold["test"]) == sorted(LINKED)


def test_folds_that_are_cut_at_rows_leave_out_of_train_what_shares_a_sentence(make_folds):
    expected = [([0, 1, 2, 3], [6, 7, 8]), ([4, 5, 6], [0, 1, 2, 7, 8]), ([7, 8], [0, 1, 2, 3, 4, 5, 6])]
    for fold, (test, train) in zip(make_folds(LINKED, "--cuts", "4", "7"), expected, strict=True):
        assert fold["test"] == [LINKED[i] for i in test]
        assert fold["train"] == [LINKED[i] for i in train]


def test_docstring_pairs_are_a_summary_with_its_own_paragraph_and_with_another(tmp_path, run_script, monkeypatch):
    first, second = "Say what the first one does.", "Say what the second one does."
    prose = [f"A paragraph number {i} of plain words, long enough to be taken for prose." * 2 for i in range(4)]
    parameters = "Parameters\n----------\nit : int\n    Which is a list of parameters and no prose, however long it is."
    code = ">>> Second().is_no_prose_since_it_is_code() and so_is_this_and_that_and_what_comes_below(it, too)"
    docstrings = [
        f"{first}\n\n{prose[0]}\n\n{parameters}",
        f"{second}\n\n{code}\n\n{prose[1]}",
        "Has no paragraph below it.",
        f"Too short.\n\n{prose[2]}",
        f"{second}\n\n{prose[3]}",  # the same summary again
    ]
    source = "".join(f"{kind}:\n    {text!r}\n\n" for text in docstrings for kind in ("def function()", "class Class"))
    package = tmp_path / "made_up_package"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text(source)
    (package / "tests" / "test_it.py").write_text(source.replace("Say", "Test"))
    (package / "broken.py").write_text("{{ a template }}")
    monkeypatch.syspath_prepend(tmp_path)
    folder = write(tmp_path / "data", ".csv")
    arguments = "make_docstrings.py", folder, tmp_path / "made", "--packages", package.name, "--pairs"
    with pytest.raises(SystemExit, match="the packages have 2 docstrings with a paragraph: ask for as many at most"):
        run_script(*arguments, 3)
    run_script(*arguments, 2)
    own, others = [(first, prose[0], 5), (second, prose[1], 5)], [(first, prose[1], 0), (second, prose[0], 0)]
    assert sorted(rows_of(load_pairs(str(tmp_path / "made")).splits["test"])) == sorted(own + others)


def test_stsb_has_its_published_size(stsb_folder):
    data = load_pairs(str(stsb_folder))
    assert [len(data.splits[name]) for name in SPLITS] == [5749, 1500, 1379]
    train = data.splits["train"]
    assert (train.sentence1[0], train.scores[0]) == ("A plane is taking off.", 5)
