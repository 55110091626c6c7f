from types import SimpleNamespace

from tests.helpers.trained_runs import KEY, run_with_search_scores, trained
from twinsqueeze.evaluation.baselines import BaselineScores
from twinsqueeze.registry import model_card
from twinsqueeze.reporting import search_table
from twinsqueeze.reporting.ablation_table import BaselineRow, build_tables, metric_name
from twinsqueeze.reporting.search_table import VectorFormat
from twinsqueeze.reporting.statistics import SeedStats
from twinsqueeze.task import SIMILARITY


def test_rows_are_each_compressors_best_alpha_at_every_precision_by_bytes():
    runs = [run_with_search_scores(0.8, alpha=0, seed=seed, dim=dim) for dim in (8, 32) for seed in (0, 1)]
    runs += [run_with_search_scores(0.85, alpha=0.75, seed=0, dim=8)]
    names = [metric_name(split, score) for split in ("dev", "test") for score in SIMILARITY.search_scores]
    measured = dict.fromkeys(names, SeedStats(0.6, float("nan"), 1))
    faiss = [BaselineRow(f"FAISS PQ, {size} bytes", None, size, measured, search_only=True) for size in (16, 64)]
    baselines = [BaselineRow("uncompressed", None, 1536, measured), *faiss]
    rows = search_table.rows_from_tables(build_tables(runs, {KEY: baselines}))
    assert [(row.name, row.bytes) for row in rows] == [
        ("uncompressed", 1536),
        ("mlp32, alpha 0, float32", 128),
        ("FAISS PQ, 64 bytes", 64),
        ("mlp8, alpha 0.75, float32", 32),
        ("mlp32, alpha 0, int8", 32),
        ("FAISS PQ, 16 bytes", 16),
        ("mlp8, alpha 0.75, int8", 8),
        ("mlp32, alpha 0, binary", 4),
        ("mlp8, alpha 0.75, binary", 1),
    ]
    scores = {row[0]: row[2:] for row in search_table.format_rows(rows, ["dev"], ["spearman", "mrr"])[1]}
    assert scores["mlp8, alpha 0.75, float32"] == ["0.8500", "0.30"]
    assert scores["mlp32, alpha 0, int8"] == ["0.2050 ± 0.0071", "0.21 ± 0.01"]
    assert scores["mlp8, alpha 0.75, binary"] == ["0.1000", "0.10"]
    assert scores["FAISS PQ, 16 bytes"] == ["0.6000", "0.60"]


def test_precisions_without_scores_are_omitted():
    (table,) = build_tables([trained(0.8)], {})
    rows = search_table.rows_from_tables([table])
    expected = ["mlp32, alpha 0.75, float32", "128", "0.7800", "n/a", "n/a", "n/a", "n/a"]
    assert search_table.format_rows(rows, ["test"])[1] == [expected]


SCORES = {value: dict.fromkeys(SIMILARITY.search_scores, value) for value in (0.25, 0.5, 0.75)}


def test_a_run_without_ranges_has_no_row_at_int8():
    result = SimpleNamespace(scores=SCORES[0.5], by_precision={"binary": SCORES[0.25]})
    baseline = BaselineScores("first 12", 12, 48, False, 1, {"dev": SCORES[0.5]}, {})
    rows = search_table.rows_from_run(VectorFormat("x", "float32", 12, 48), {"dev": result}, [baseline], SIMILARITY)
    assert [row.name for row in rows] == ["x, float32", "first 12", "x, binary"]
    assert search_table.format_rows(rows, ["dev"])[1][2] == ["x, binary", "2", "0.2500", *["0.25"] * 4]


def test_a_sign_quantizer_has_rows_for_stored_codes_and_float_queries_only():
    result = SimpleNamespace(scores=SCORES[0.5], by_precision={"asymmetric": SCORES[0.75]})
    rows = search_table.rows_from_run(VectorFormat("x", "binary", 12, 2), {"dev": result}, [], SIMILARITY)
    assert search_table.format_rows(rows, ["dev"])[1] == [
        ["x", "2", "0.5000", *["0.50"] * 4],
        ["x, float queries", "2", "0.7500", *["0.75"] * 4],
    ]
    (table,) = build_tables([run_with_search_scores(0.8, dim=64, quantizer="sign", architecture="linear")], {})
    rows = search_table.rows_from_tables([table])
    found = [(row.name, row.bytes, row.scores["dev/spearman"].mean, row.scores["search/test_mrr"].mean) for row in rows]
    assert found == [
        ("linear64-sign, alpha 0.75", 8, 0.8, 0.3),
        ("linear64-sign, alpha 0.75, float queries", 8, 0.4, 0.4),
    ]
    text = model_card.precision_table(table.rows[0])
    assert "| binary, float queries | 8 | 0.4000 | 0.40 | 0.4000 | 0.40 |" in text


def test_product_codes_take_a_byte_per_subvector():
    fields = {"dim": 64, "subvector_dim": 8, "quantizer": "product", "architecture": "linear"}
    (table,) = build_tables([run_with_search_scores(0.8, **fields)], {})
    rows = search_table.rows_from_tables([table])
    assert [(row.name.partition(",")[0], row.bytes) for row in rows] == 2 * [("linear64-product8", 8)]
    assert model_card.vector_sizes(table.rows[0].recipe) == {"product": 8, "float32": 256, "int8": 64, "binary": 8}
