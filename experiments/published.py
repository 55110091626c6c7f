"""The published ablation with seeds: `python -m experiments.published --dataset stsb`.

Five strengths of noise and as many seeds as asked for, trained in one loop; each replica is bit for bit what
`mlflow run . -P alpha=A -P seed=S` trains on the same machine. Writes a table and a figure.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import click
import numpy as np
from scipy import stats

from twinsqueeze import console
from twinsqueeze.baselines import cached_baselines
from twinsqueeze.cache import Cache
from twinsqueeze.embeddings import embed_pairs, open_encoder
from twinsqueeze.evaluation import Assessment, assess
from twinsqueeze.figures import spearman_against_alpha
from twinsqueeze.pairs import load_pairs
from twinsqueeze.recipe import Recipe
from twinsqueeze.training import Progress, fit

ALPHAS = (0.0, 0.5, 0.75, 1.0, 3.0)
LINES = ("uncompressed", "first 32", "PCA to 32, whitened")
RESULTS = Path(__file__).parent / "results"


def values(assessments: Sequence[Assessment], metric: str) -> np.ndarray:
    """A metric of every seed."""
    return np.array([assessment.scores[metric] for assessment in assessments])


def mean_interval(sample: np.ndarray) -> tuple[float, float]:
    """The 95% interval of a mean over seeds, by Student's t."""
    return stats.ttest_1samp(sample, 0).confidence_interval()


def row(alpha: float, results: Mapping[float, Mapping[str, Sequence[Assessment]]]) -> list[str]:
    """A strength of noise as a row: mean and standard deviation over seeds, and the difference to no noise."""
    cells = [f"alpha {alpha:g}", "128"]
    for split in ("dev", "test"):
        for metric in ("mse", "mae", "pearson", "spearman"):
            sample = values(results[alpha][split], metric)
            cells.append(f"{sample.mean():.4f} ± {sample.std(ddof=1):.4f}")
        if alpha == 0:
            cells.append("")
        else:
            with_noise, without = (values(results[a][split], "spearman") for a in (alpha, 0.0))
            low, high = stats.ttest_ind(with_noise, without, equal_var=False).confidence_interval()
            cells.append(f"{with_noise.mean() - without.mean():+.4f} ({low:+.4f} to {high:+.4f})")
        cells.append(f"{values(results[alpha][split], 'neighbours_kept').mean():.2f}")
    return cells


@click.command()
@click.option("--dataset", default="stsb", show_default=True, help="As for `twinsqueeze main`.")
@click.option("--seeds", default=5, show_default=True, help="How many seeds, from 0.")
@click.option(
    "--name", default="published", show_default=True, help="What the files in experiments/results are called."
)
def main(dataset: str, seeds: int, name: str) -> None:
    """Trains the published alphas with seeds and writes experiments/results/NAME.md and NAME.png."""
    data = load_pairs(dataset)
    cache = Cache()
    with console.progress("encoding", "sentence") as advance:
        encoded = embed_pairs(
            data.splits, open_encoder(Recipe().encoder), cache, on_progress=lambda *done: advance(*done, {})
        )
    recipes = [Recipe(alpha=alpha, seed=seed, dataset=dataset) for alpha, seed in product(ALPHAS, range(seeds))]
    with console.progress("training", "epoch") as advance:

        def on_epoch(progress: Progress) -> None:
            shown = {"loss": f"{progress.loss.mean():.4f}", "dev Spearman": f"{progress.dev.spearman.mean():.4f}"}
            advance(progress.epoch, progress.epochs, shown)

        fitted = fit(recipes, encoded["train"], encoded["dev"], clean_every=10, on_epoch=on_epoch)
    splits = ("dev", "test")
    results = {
        alpha: {
            split: [assess(f.compressor, encoded[split], f.recipe.labels) for f in fitted if f.recipe.alpha == alpha]
            for split in splits
        }
        for alpha in ALPHAS
    }
    labels = {split: results[0.0][split][0].labels for split in splits}
    evaluated = {split: encoded[split] for split in splits}
    baselines = cached_baselines(encoded["train"].embeddings, evaluated, labels, Recipe().dim, cache)

    columns = ["MSE", "MAE", "Pearson", "Spearman", "Spearman less that at alpha 0", "neighbours"]
    header = ["model", "bytes", *(f"{split} {column}" for split in splits for column in columns)]
    table = [row(alpha, results) for alpha in ALPHAS]
    for baseline in baselines:
        cells = [baseline.name, f"{baseline.bytes:,}"]
        for split in splits:
            scores = baseline.scores[split]
            cells += [f"{scores[m]:.4f}" for m in ("mse", "mae", "pearson", "spearman")]
            cells += ["", f"{scores['neighbours_kept']:.2f}"]
        table.append(cells)
    losses = [
        [f"alpha {alpha:g}"]
        + [
            f"{np.mean([getattr(f.history, curve)[-1] for f in fitted if f.recipe.alpha == alpha]):.4f}"
            for curve in ("loss", "clean_loss")
        ]
        for alpha in ALPHAS
    ]
    text = (
        f"`python -m experiments.published --dataset {data.name} --seeds {seeds} --name {name}`: mean ± standard "
        "deviation over seeds; differences with 95% intervals by Welch's t over seeds. The rows below "
        "need no labels.\n\n"
    )
    if data.notice:
        text += f"**{data.notice}**\n\n"
    text += console.markdown(header, table) + "\n\n"
    text += console.markdown(["final train loss", "noisy", "clean"], losses) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    click.echo(text)

    samples = {split: [values(results[alpha][split], "spearman") for alpha in ALPHAS] for split in splits}
    figure = spearman_against_alpha(
        np.array(ALPHAS),
        {split: np.array([sample.mean() for sample in samples[split]]) for split in splits},
        {split: np.array([mean_interval(sample) for sample in samples[split]]).T for split in splits},
        {split: {b.name: b.scores[split]["spearman"] for b in baselines if b.name in LINES} for split in splits},
    )
    figure.savefig(RESULTS / f"{name}.png", dpi=150)


if __name__ == "__main__":
    main()
