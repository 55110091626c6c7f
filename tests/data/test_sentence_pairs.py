import json
import os
import runpy
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.helpers import hub, refusals
from tests.helpers.commands import ROOT
from tests.helpers.forks import ForkedProcess
from tests.helpers.pairs import rows_of
from tests.helpers.servers import free_port
from twinsqueeze.data import hub as hub_client
from twinsqueeze.data import sentence_pairs
from twinsqueeze.data.dataset import SPLITS
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.data.sentence_pairs import DEMO_FOLDER, load_pairs

# Sentences that CSV readers take for missing values or break.
ROWS = [
    ("A man is playing a guitar.", "None", 0.0),
    ("NA", 'He said "no, thanks".', 2.5),
    ("two\nlines", "emoji \U0001f600 and naïve", 5.0),
    ("null", "007", 1.2345),
]


def write(folder: Path, suffix: str, rows=ROWS, names=SPLITS) -> Path:
    """Writes the same rows as every split."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows, columns=sentence_pairs.COLUMNS)
    for name in names:
        path = folder / f"{name}{suffix}"
        if suffix.endswith(".parquet"):
            table.to_parquet(path)
        elif suffix == ".jsonl":
            table.to_json(path, orient="records", lines=True)
        else:
            table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return folder


def refusal(dataset, **options):
    return refusals.refusal(load_pairs, str(dataset), **options)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    data = load_pairs(str(write(tmp_path / "mine", suffix)))
    assert (data.name, data.notice) == ("mine", None)
    for split in SPLITS:
        assert rows_of(data.splits[split]) == ROWS
        assert data.splits[split].scores.dtype == np.float64
    assert data.digest == load_pairs(str(write(tmp_path / "csv", ".csv"))).digest


def test_validation_is_read_as_dev(tmp_path):
    write(tmp_path, ".csv", names=["train", "validation", "test"])
    assert len(load_pairs(str(tmp_path)).splits["dev"]) == 4


def test_only_the_requested_splits_are_opened(tmp_path):
    write(tmp_path, ".csv", names=["train", "dev"])
    (tmp_path / "test.csv").write_bytes(b"\xff\xfe broken")
    data = load_pairs(str(tmp_path), splits=("train", "dev"))
    assert list(data.splits) == ["train", "dev"]
    write(tmp_path, ".csv", names=["test"])
    assert load_pairs(str(tmp_path)).digest == data.digest


def test_the_digest_depends_on_order_text_and_score_but_not_on_rounding(tmp_path):
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
    assert "score_max=1" in refusal(tmp_path)
    scores = load_pairs(str(tmp_path), score_max=1).splits["train"].scores
    np.testing.assert_allclose(scores, [1, 5])


HEADER = b"sentence1,sentence2,score\n"
JSON_LINE = b'{"sentence1": %s, "sentence2": "b", "score": %d}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", b"", "is empty"),  # not even a header
        ("train.csv", HEADER, "has no rows"),
        ("train.csv", HEADER + b"a,b,3\n", "has one row"),  # a correlation needs two
        ("train.csv", HEADER + b"a,b,3\nc,d,3\n", "all scores are 3, so no correlation"),
        ("train.csv", b"sentence1,sentence2\na,b\n", "lacks the column score; its columns are sentence1, sentence2"),
        ("train.csv", HEADER + b"a,b,3\nc,d,nan\n", "row 2: score 'nan' is not a finite number"),
        ("train.csv", HEADER + b"a,b,3\nc,d,inf\n", "row 2: score 'inf' is not a finite number"),
        ("train.csv", HEADER + b"a,b,\nc,d,2\n", "row 1: score '' is not a finite number"),
        ("train.csv", HEADER + b"a,b,high\nc,d,2\n", "row 1: score 'high' is not a finite number"),
        ("train.csv", HEADER + b"a,b,5.1\nc,d,2\n", "row 1: score 5.1 is outside the scale from 0 to 5"),
        ("train.csv", HEADER + b"a,b,-1\nc,d,2\n", "row 1: score -1 is outside"),
        ("train.csv", HEADER + b"a,,4\nc,d,2\n", "row 1: sentence2 is empty"),
        ("train.csv", HEADER + b'a,b,4\n" \t",d,2\n', "row 2: sentence1 is empty"),  # blanks only
        ("train.csv", HEADER + b"a,b,1\nc,d,5\n\xe9,b,3\n", "is not UTF-8"),  # Latin-1
        ("train.jsonl", b'{"sentence1": "a", ', "can't be read as jsonl"),  # truncated
        ("train.jsonl", JSON_LINE % (b"null", 3) + JSON_LINE % (b'"c"', 2), "row 1: sentence1 is None, not a text"),
        ("train.jsonl", JSON_LINE % (b"7", 3) + JSON_LINE % (b"8", 2), "row 1: sentence1 is 7, not a text"),
        (
            "train.jsonl",
            JSON_LINE % (b'"\\ud800"', 3) + JSON_LINE % (b'"c"', 2),
            "sentence1 has half of a surrogate pair",
        ),
        (
            "train.jsonl",
            JSON_LINE % (b'"[0.1, 0.2]"', 3) + JSON_LINE % (b'"c"', 2),
            "sentence1 is '[0.1, 0.2]', not a text: remove the row",
        ),
        ("train.jsonl", b"[\n" + JSON_LINE % (b'"a"', 3), "can't be read as jsonl"),
        ("train.parquet", b"PAR1 and no more", "not a .parquet file"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, content, message):
    write(tmp_path, ".csv", names=["dev", "test"])
    (tmp_path / name).write_bytes(content)
    refused = refusal(tmp_path)
    assert "train" in refused
    assert message in refused


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("./nowhere", {}, "not found: pass stsb, demo"),
        ("/no/such/folder", {}, "not found: pass stsb, demo"),
        ("~/no/such/folder", {}, "not found: pass stsb, demo"),
        ("with\nnewline", {}, "not found: pass stsb, demo"),
        ("no-such-dataset", {}, "cannot be loaded from the Hub or its cache (HF_HUB_OFFLINE is set"),
        ("demo", {"splits": ["eval"]}, "split must be one of train, dev, test, not 'eval'"),
        *(
            ("demo", {"score_max": score_max}, "score_max must be a finite number above 0")
            for score_max in (0, -1, float("nan"), float("inf"))
        ),
    ],
)
def test_an_unknown_dataset_or_option_is_refused_in_one_line(dataset, options, message):
    assert message in refusal(dataset, **options)


def test_missing_and_duplicate_splits_are_refused(tmp_path):
    write(tmp_path, ".csv", names=["train", "dev"])
    assert "lacks the split test: add one of the files test" in refusal(tmp_path)
    write(tmp_path, ".jsonl", names=["train"])
    assert "two files for the split train, " in refusal(tmp_path)


# The Hub's client reads its settings when it is imported: each set of settings needs a process of its own.
LOAD = """
import json, sys
from twinsqueeze.data.loading import load_dataset
from twinsqueeze.errors import InputError
for dataset in sys.argv[1:]:
    try:
        data = load_dataset(dataset)
        print(json.dumps([data.name, data.source, data.notice, data.digest, data.splits["test"].digest]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def load_in_new_process(endpoint: str, home: Path, *datasets: str) -> list:
    environment = {k: v for k, v in os.environ.items() if k not in {"HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"}}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    with ForkedProcess(["-c", LOAD, *datasets], environment, ROOT) as process:
        output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture
def silent_server():
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_queries_and_texts_come_from_the_hub_as_from_a_folder(tmp_path):
    rows = [(f"what is {i}?", f"it is {i}") for i in range(60)]
    questions = pd.DataFrame(rows, columns=["question", "answer"])
    for name, table in {"questions": questions, "texts": questions[["answer"]].set_axis(["text"], axis=1)}.items():
        (tmp_path / "hub/someone" / name / "data").mkdir(parents=True)
        table.to_csv(tmp_path / "hub/someone" / name / "data/train.csv", index=False)
    (tmp_path / "hub/someone/numbers/data").mkdir(parents=True)
    pd.DataFrame({"text": [1.5, 2.5]}).to_csv(tmp_path / "hub/someone/numbers/data/train.csv", index=False)
    ids = ["someone/questions", "someone/texts"]
    with hub.serve(tmp_path / "hub") as endpoint:
        *found, refused = load_in_new_process(endpoint, tmp_path / "cached", *ids, "someone/numbers")
    assert refused.startswith("someone/numbers/train.parquet has neither texts nor lists of numbers")
    for (name, source, _, *digests), id_ in zip(found, ids, strict=True):
        assert (name, source) == (id_, f"https://huggingface.co/datasets/{id_}")
        local = load_dataset(str(tmp_path / "hub" / id_))
        assert digests == [local.digest, local.splits["test"].digest]


@pytest.mark.parametrize("answers", [None, pytest.param("never", marks=pytest.mark.slow)], ids=["closed", "silent"])
def test_datasets_of_the_hub_are_cached_and_auto_is_the_demo_without_them(answers, silent_server, tmp_path):
    for split in ("train", "validation", "test"):
        rows = [(f"{split} {a}", b, score) for a, b, score in ROWS]
        scaled = [(a, b, score / 5) for a, b, score in rows]  # as STS-B has them on the Hub
        write(tmp_path / "hub/sentence-transformers/stsb/data", "-00000-of-00001.parquet", scaled, [split])
        write(tmp_path / "stsb", ".csv", rows, [split])
    write(tmp_path / "hub/someone/pairs/data", "-00000-of-00001.parquet", names=["train", "validation"])
    datasets = "stsb", "sentence-transformers/stsb", "someone/else", "someone/pairs"
    with hub.serve(tmp_path / "hub") as endpoint:
        stsb, by_id, unknown, incomplete = load_in_new_process(endpoint, tmp_path / "cached", *datasets)
    files = load_pairs(str(tmp_path / "stsb"))
    source = "https://huggingface.co/datasets/sentence-transformers/stsb"
    assert stsb == by_id == ["stsb", source, None, files.digest, files.splits["test"].digest]
    assert "dataset 'someone/else' cannot be loaded from the Hub" in unknown
    assert incomplete == "dataset 'someone/pairs' lacks the split test; it has train, validation"

    endpoint = silent_server if answers else f"http://127.0.0.1:{free_port()}"
    assert load_in_new_process(endpoint, tmp_path / "cached", "stsb", "auto") == [stsb, stsb]
    refused, auto = load_in_new_process(endpoint, tmp_path / "empty", "stsb", "auto")
    assert refused.startswith("dataset 'sentence-transformers/stsb' cannot be loaded from the Hub")
    name, _, notice, *_ = auto
    assert name == "demo"
    assert "STS-B is not available" in notice
    assert "no benchmark" in notice


@pytest.mark.parametrize("waiting_for", ["an answer", "an address"])
def test_a_silent_hub_is_unavailable_after_the_timeout(waiting_for, silent_server, monkeypatch):
    """5 seconds are documented. Here the timeout is shorter, and the server answers and name resolution ends never."""
    assert hub_client.PROBE_TIMEOUT < 5
    monkeypatch.setattr(hub_client, "PROBE_TIMEOUT", 0.05)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "5")
    monkeypatch.setenv("HF_ENDPOINT", silent_server)
    test_ended = threading.Event()
    if waiting_for == "an address":
        monkeypatch.setattr(hub_client, "urlopen", lambda *_, **__: test_ended.wait())
    assert "does not answer" in hub_client.hub_unavailable_reason.__wrapped__()
    test_ended.set()


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
    """Returns a function that cuts 9 pairs, of which only 3, 4 and 5 share sentences, and returns pairs and folds."""
    rows = [(f"a{i}", f"b{i}", float(i % 6)) for i in range(9)]
    rows[4], rows[5] = ("a3", "c", 4.0), ("d", "c", 5.0)

    def make(*options):
        run_script(
            "make_folds.py", write(tmp_path / "data", ".csv", rows, ["train", "dev"]), tmp_path / "folds", *options
        )
        assert sorted(path.name for path in (tmp_path / "folds").iterdir()) == ["0", "1", "2"]
        folds = [load_pairs(str(tmp_path / "folds" / name)).splits for name in ("0", "1", "2")]
        return rows, [{name: rows_of(split) for name, split in fold.items()} for fold in folds]

    return make


def test_folds_share_no_sentence_and_leave_out_no_pair(make_folds):
    rows, folds = make_folds("--folds", "3")
    for fold in folds:
        assert sorted(fold["train"] + fold["test"]) == sorted(rows)
        train, test = ({text for row in fold[name] for text in row[:2]} for name in ("train", "test"))
        assert not train & test
        assert fold["dev"] == rows
    assert sorted(row for fold in folds for row in fold["test"]) == sorted(rows)


def test_folds_that_are_cut_at_rows_leave_out_of_train_what_shares_a_sentence(make_folds):
    rows, folds = make_folds("--cuts", "4", "7")
    expected = [([0, 1, 2, 3], [6, 7, 8]), ([4, 5, 6], [0, 1, 2, 7, 8]), ([7, 8], [0, 1, 2, 3, 4, 5, 6])]
    for fold, (test, train) in zip(folds, expected, strict=True):
        assert fold["test"] == [rows[i] for i in test]
        assert fold["train"] == [rows[i] for i in train]


def test_docstring_pairs_are_a_summary_with_its_own_paragraph_and_with_another(tmp_path, run_script, monkeypatch):
    first, second = "Say what the first one does.", "Say what the second one does."
    prose = [
        f"It has a paragraph number {i} of plain words, which is long enough to be taken for prose by any reader of it."
        for i in range(4)
    ]
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
