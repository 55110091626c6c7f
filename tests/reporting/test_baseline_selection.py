from twinsqueeze.reporting.ablation_table import BaselineRow
from twinsqueeze.reporting.baseline_selection import strongest
from twinsqueeze.reporting.statistics import SeedStats

NAN = float("nan")


def test_the_best_three_of_every_size_are_shown_and_uncompressed_vectors_and_pca():
    scores = {
        ("uncompressed", 128): 0.1,
        **{(f"baseline {i}", 128): 0.2 + i / 10 for i in range(4)},
        ("PCA to 32", 128): 0.1,
        ("PCA to 32, whitened", 128): 0.15,
        **{(f"small {i}", 32): i / 10 for i in range(5)},
        **{(f"small {i}, float queries, 32 bytes", 32): 0.9 + i / 100 for i in range(4)},
        ("not measured", 16): NAN,
    }
    rows = [
        BaselineRow(name, None, size, {"dev/spearman": SeedStats(dev, NAN, 1), "test/spearman": SeedStats(1, NAN, 1)})
        for (name, size), dev in scores.items()
    ]
    shown = ["uncompressed", "baseline 1", "baseline 2", "baseline 3", "PCA to 32", "small 2", "small 3", "small 4"]
    shown += [f"small {i}, float queries, 32 bytes" for i in (1, 2, 3)]
    assert [each.name for each in strongest(rows, "dev/spearman")] == [*shown, "not measured"]
