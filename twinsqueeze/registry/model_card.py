"""The model card: what a model was made of, how it does beside what needs no training, and what it is not for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

from twinsqueeze.evaluation.metrics import METRICS
from twinsqueeze.model.checkpoint import Provenance
from twinsqueeze.recipe import FLOAT_QUERIES, Recipe, bytes_per_vector
from twinsqueeze.reporting import formats
from twinsqueeze.reporting.ablation_table import (
    ASYMMETRIC,
    COLUMN_NAMES,
    EVALUATED_SPLITS,
    PRECISIONS,
    BaselineRow,
    Row,
    TrainedRun,
    metric_name,
)
from twinsqueeze.reporting.statistics import ABSENT, SeedStats
from twinsqueeze.utils.text import escape_markdown

LOWER_IS_BETTER = ("mse", "mae")
COLUMNS = {score: COLUMN_NAMES[score] for score in (*METRICS, "neighbor_recall")}
ENCODER_LICENCES = {"all-MiniLM-L6-v2": "Apache 2.0."}
# By the digest of train and dev, whatever the user calls them.
DATA_LICENCES = {
    "e85c7a2ecfacab2e": "STS-B (Cer et al. 2017), its scores CC BY-SA 4.0, its sentences under the licences of their "
    "sources.",
    "e3944d43fc94b8b5": "TwinSqueeze's demo, Apache 2.0.",
}


UNKNOWN = "a licence of its own, which this card does not know."


@dataclass(frozen=True)
class ModelSelection:
    """How a model was chosen among trained ones.

    Attributes:
        metric: Of the choice, such as "dev/spearman".
        row: The chosen recipe's runs.
        run: The chosen one of them.
        recipes: How many recipes there were to choose from.
        baselines: What needs no labels, on the same data.
    """

    metric: str
    row: Row
    run: TrainedRun
    recipes: int
    baselines: Sequence[BaselineRow]


def sizes(recipe: Recipe) -> dict[str, int]:
    """Bytes of a compressed vector as it was trained and as sentence-transformers can keep it."""
    kept_as = {precision: bytes_per_vector(precision, recipe.dim) for precision in PRECISIONS}
    return {recipe.precision: recipe.bytes_per_vector, **kept_as}


def render_model_card(
    provenance: Provenance,
    input_dimension: int,
    *,
    longest: int | None,
    choice: ModelSelection | None = None,
    verdict: str | None = None,
    run_id: str | None = None,
) -> str:
    """A model's card, Markdown.

    Args:
        provenance: What the compressor's file says of its training.
        input_dimension: Numbers in an encoder's vector.
        longest: Tokens of a text that the encoder reads; None where that was not looked up.
        choice: How it was chosen and how it does; None for a model that was taken as it is.
        verdict: What came of the comparison with the champion of the time, a sentence.
        run_id: Of the training, if that is known.
    """
    recipe = provenance.recipe
    dim = recipe.dim
    before = f"{bytes_per_vector('float32', input_dimension):,}"
    shown = ", ".join(f"{size:,} as {name}" for name, size in sizes(recipe).items())
    fields = [[name, str(value)] for name, value in recipe.model_dump().items()]
    parts = [
        f"# TwinSqueeze {recipe.name}",
        f"Text to vectors of {dim} numbers and length 1, whose cosine says how much two sentences mean the same. "
        f"The sentence encoder {escape_markdown(recipe.encoder)} gives {input_dimension} numbers ({before} bytes), a "
        f"compressor makes them {dim}.",
        *([_trained_as(recipe)] if recipe.precision != "float32" else []),
        "## Bytes a vector",
        f"{shown}; {before} before compression.",
        "## Data",
        f"Scored sentence pairs {escape_markdown(provenance.dataset)}, digest of train and dev "
        f"{escape_markdown(provenance.dataset_digest)}. "
        "Trained on train, chosen on dev. Test took no part in any choice.",
        *([f"**{escape_markdown(choice.run.notice)}**"] if choice and choice.run.notice else []),
        "## Recipe",
        formats.markdown_table(["field", "value"], fields),
        f"Made by TwinSqueeze {escape_markdown(provenance.version)}"
        + (f", run {run_id}." if run_id else ".")
        + f" Encoder's fingerprint: {escape_markdown(provenance.encoder_fingerprint[:16])}.",
    ]
    if choice:
        parts += ["## How it was chosen", _chosen(choice), *([verdict] if verdict else []), "## Results"]
        parts += _results(choice)
    elif run_id:
        parts += ["## Results", f"They are with run {run_id} in its tracking store."]
    parts += ["## Licence", _licence(provenance), "## Limits", _limits(longest, choice)]
    return "\n\n".join(parts) + "\n"


def _trained_as(recipe: Recipe) -> str:
    what = {
        "binary": 'take the signs, as `encode(texts, precision="ubinary")` or `twinsqueeze compress` do.',
        "product": "take the codes that `twinsqueeze compress` gives, or a FAISS index with the codebooks in "
        "compressor.safetensors.",
    }[recipe.precision]
    return (
        f"It was trained to be kept as {recipe.precision}, {recipe.bytes_per_vector:,} bytes a vector, and all figures "
        f"below are of such vectors, both of a pair, but for rows with {FLOAT_QUERIES}: {what}"
    )


def _chosen(choice: ModelSelection) -> str:
    score = choice.row.scores[choice.metric]
    deviation = f" ± {score.deviation:.4f}" if score.count > 1 else ""
    name = _metric_name(choice.metric)
    seeds = "one seed" if score.count == 1 else f"{score.count} seeds"
    found = f"Of {choice.recipes} recipes its recipe" if choice.recipes > 1 else "Its recipe, the only one,"
    text = f"{found} has the best mean {name} over seeds: {score.mean:.4f}{deviation} over {seeds}."
    if score.count == 1:
        return f"{text} A single seed says nothing of how much chance is in it."
    return (
        f"{text} Of these seeds, this one ({choice.run.recipe.seed}) is the best by {name}: dev chose it, so its own "
        "figures on dev are better than what another seed is likely to give. The recipe's mean is the honest figure "
        "there."
    )


def _metric_name(metric: str) -> str:
    split, _, score = metric.partition("/")
    return f"{COLUMN_NAMES[score]} on {split}"


def _results(choice: ModelSelection) -> list[str]:
    header = ["", "bytes", *(f"{split} {column}" for split in EVALUATED_SPLITS for column in COLUMNS.values())]
    size = f"{choice.row.bytes:,}"
    own = {name: SeedStats.of([value]) for name, value in choice.run.metrics.items()}
    rows = [[f"this model, seed {choice.run.recipe.seed}", size, *_cells(own)]]
    if (count := len(choice.row.runs)) > 1:
        rows.append([f"its recipe, mean of {count} seeds", size, *_cells(choice.row.scores)])
    rows += [
        [b.name, f"{b.bytes:,}", *_cells(b.scores)]
        for b in choice.baselines
        if b.dim in {None, choice.row.recipe.dim} and not b.search_only
    ]
    text = [
        formats.markdown_table(header, rows),
        "The other rows need no scored pairs. Neighbor recall: the share of a sentence's ten nearest that are still "
        "among its ten nearest when compressed.",
    ]
    if quantised := _quantised(choice):
        text.append(quantised)
    if intervals := _intervals(choice.run.metrics):
        text.append(f"95% bootstrap intervals over pairs, of this model: {intervals}.")
    return text


def _quantised(choice: ModelSelection) -> str | None:
    """The recipe's vectors in fewer bytes or with float queries, means over seeds; None where that was not measured."""
    recipe = choice.row.recipe
    forms = {precision: (precision, bytes_per_vector(precision, recipe.dim)) for precision in PRECISIONS[1:]}
    forms[ASYMMETRIC] = f"{recipe.precision}, {FLOAT_QUERIES}", recipe.bytes_per_vector
    rows = []
    for compared, (form, size) in forms.items():
        names = [
            metric_name(split, score, compared)
            for split in EVALUATED_SPLITS
            for score in ("spearman", "neighbor_recall")
        ]
        found = [choice.row.scores[name].mean for name in names]
        if not isnan(found[0]):
            cells = (ABSENT if isnan(value) else f"{value:.{2 if i % 2 else 4}f}" for i, value in enumerate(found))
            rows.append([form, f"{size:,}", *cells])
    if not rows:
        return None
    header = [
        "its recipe kept as",
        "bytes",
        *(f"{s} {c}" for s in EVALUATED_SPLITS for c in ("Spearman", "neighbor recall")),
    ]
    return formats.markdown_table(header, rows)


def _cells(scores: Mapping[str, SeedStats]) -> list[str]:
    cells = []
    for split in EVALUATED_SPLITS:
        for name in COLUMNS:
            found = scores.get(f"{split}/{name}")
            known = found is not None and not isnan(found.mean)
            cells.append(f"{found.mean:.{2 if name == 'neighbor_recall' else 4}f}" if found and known else ABSENT)
    return cells


def _intervals(metrics: Mapping[str, float]) -> str:
    parts = []
    for split in EVALUATED_SPLITS:
        for name in reversed(METRICS):
            low, high = (metrics.get(f"uncertainty/{split}_{name}_{end}") for end in ("low", "high"))
            if low is not None and high is not None:
                parts.append(f"{split} {COLUMN_NAMES[name]} {low:.4f} to {high:.4f}")
    return ", ".join(parts)


def _licence(provenance: Provenance) -> str:
    encoder, data = provenance.recipe.encoder, provenance.dataset
    of_encoder = ENCODER_LICENCES.get(encoder.removeprefix("sentence-transformers/"), UNKNOWN)
    return (
        "The compressor's weights and TwinSqueeze: Apache 2.0. "
        f"The encoder ({escape_markdown(encoder)}), whose weights are part of a text model: {of_encoder} "
        f"The data ({escape_markdown(data)}): {DATA_LICENCES.get(provenance.dataset_digest, UNKNOWN)}"
    )


def _limits(longest: int | None, choice: ModelSelection | None) -> str:
    limits = [
        "Vectors of different models or versions can't be compared: a new version means compressing the index again.",
        *([f"A text is cut after {longest:,} tokens, as the encoder cuts it."] if longest else []),
        "Languages and kinds of text are the encoder's, and the compressor has seen only sentences such as the data's.",
        "A cosine is a similarity trained on people's scores of pairs, and no probability.",
        "The same recipe gives other weights on another machine.",
    ]
    if choice:
        kept = choice.run.metrics.get("dev/neighbor_recall")
        if kept is not None:
            limits.append(
                f"Of a sentence's ten nearest neighbours on dev {kept:.0%} are kept: for search, look at the table "
                "before you use it."
            )
        better = _baselines_ahead(choice)
        if better:
            limits.append(f"In no more bytes and without training, better by {_metric_name(choice.metric)}: {better}.")
    return "\n".join(f"- {limit}" for limit in limits)


def _baselines_ahead(choice: ModelSelection) -> str:
    """Baselines that beat the recipe's mean in no more bytes than its vectors have."""
    sign = -1 if choice.metric.partition("/")[2] in LOWER_IS_BETTER else 1
    ours = sign * choice.row.scores[choice.metric].mean
    found = [
        f"{escape_markdown(row.name)} ({row.scores[choice.metric].mean:.4f}, {row.bytes:,} bytes)"
        for row in choice.baselines
        if row.dim in {None, choice.row.recipe.dim}
        and row.bytes <= choice.row.bytes
        and choice.metric in row.scores
        and sign * row.scores[choice.metric].mean > ours
    ]
    return ", ".join(found)
