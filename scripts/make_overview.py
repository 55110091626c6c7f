"""Draws docs/assets/overview.png, the picture of the README, from experiments/results: `python -m scripts.make_overview`."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from scripts.docs_macros import ROOT, score

OURS, GRAY = "#c2410c", "#6b7280"
# Series of the right panel: label, color, rows of the table with the form of their vectors, and the label's place.
SERIES = (
    (
        "TwinSqueeze",
        OURS,
        [
            ("linear64-product4", None, "asymmetric"),
            ("linear128-product4", 0, "asymmetric"),
            ("linear256-product4", None, "asymmetric"),
        ],
        (34, 0.842),
    ),
    ("FAISS OPQ+PQ", GRAY, [(f"FAISS OPQ+PQ, float queries, {n} bytes", None, "") for n in (16, 32, 64)], (23, 0.695)),
    (
        "TurboQuant",  # of FAISS; with 1 bit: rotated signs
        GRAY,
        [
            ("rotated signs, float queries, 16 bytes", None, ""),
            ("rotated signs, float queries, 32 bytes", None, ""),
            ("TurboQuant 2 bits, float queries, 64 bytes", None, ""),
            ("TurboQuant 4 bits, float queries, 128 bytes", None, ""),
        ],
        (28, 0.785),
    ),
    ("PCA", GRAY, [(f"PCA to {dim}", None, "") for dim in ("32, int8", "64, int8", "128, int8", "256")], (330, 0.803)),
    ("published recipe", GRAY, [("mlp32", 0.75, "")], (300, 0.784)),
    ("uncompressed", "black", [("uncompressed", None, "")], (1000, 0.836)),
)
BOXES = (
    (0.4, "sentence", "white"),
    (2.2, "frozen\nencoder", "#e5e7eb"),
    (4.5, "384 floats\n1,536 bytes", "white"),
    (6.8, "compressor", "#fed7aa"),
    (9.0, "codes\n16 to 64\nbytes", "white"),
)


def main() -> None:
    """Draws both panels and writes the picture."""
    plt.rcParams.update({"font.size": 12, "font.family": "DejaVu Sans", "figure.facecolor": "white"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 4.2), width_ratios=(1.15, 1), layout="constrained")
    draw_pipeline(left)
    draw_quality(right)
    path = ROOT / "docs" / "assets" / "overview.png"
    figure.savefig(path, dpi=120, metadata={"Software": None})
    print(path)


def draw_pipeline(axes: Axes) -> None:
    """Draws the steps from a sentence to codes, and what trains the compressor."""
    axes.set(xlim=(-0.5, 9.9), ylim=(-2.6, 2.6))
    axes.axis("off")
    for x, text, color in BOXES:
        style = {"boxstyle": "round,pad=0.5", "facecolor": color, "edgecolor": "#374151"}
        axes.text(x, 0, text, ha="center", va="center", bbox=style, fontsize=11)
    arrow = {"arrowstyle": "-|>", "color": "#374151", "lw": 1.6}
    for start, end in ((1.1, 1.55), (2.9, 3.6), (5.4, 6.0), (7.65, 8.35)):
        axes.annotate("", xy=(end, 0), xytext=(start, 0), arrowprops=arrow)
    for x, y, text in (
        (5.3, 1.55, "noise\n(training only)"),
        (7.6, -1.7, "scores of sentence pairs\ntrain the compressor"),
    ):
        axes.text(x, y, text, ha="center", va="center", color=OURS, fontsize=11)
    axes.annotate("", xy=(5.7, 0.12), xytext=(5.4, 1.05), arrowprops=arrow | {"color": OURS})
    axes.annotate("", xy=(6.75, -0.6), xytext=(7.2, -1.2), arrowprops=arrow | {"color": OURS})
    axes.set_title("How a sentence becomes a code")


def point(model: str, alpha: float | None = None, form: str = "") -> tuple[int, float]:
    """Returns bytes per vector and test Spearman of a row of the table."""
    experiment = "best" if model.startswith(("linear", "mlp")) else "baselines"
    size, spearman = (score(experiment, model, column, alpha, form, 6) for column in ("bytes", "test/spearman"))
    return int(size.replace(",", "")), float(spearman)


def draw_quality(axes: Axes) -> None:
    """Draws test Spearman against bytes per vector."""
    for label, color, rows, place in SERIES:
        sizes, scores = zip(*(point(*each) for each in rows), strict=True)
        strong = {"lw": 3, "ms": 9, "zorder": 3} if color == OURS else {"lw": 1.5, "ms": 6}
        axes.plot(sizes, scores, "o-", color=color, **strong)
        axes.text(
            *place,
            label,
            color=color,
            ha="left" if label.startswith("FAISS") else "center",
            fontweight="bold" if color == OURS else None,
        )
    axes.axhline(point("uncompressed")[1], color="black", lw=0.8, ls=":")
    axes.set_xscale("log", base=2)
    ticks = [16, 32, 64, 128, 256, 512, 1536]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=10)
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set(xlabel="bytes per vector", ylabel="test Spearman (STS-B)", ylim=(0.66, 0.86), xlim=(12.5, 2100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Similarity against size")


if __name__ == "__main__":
    main()
