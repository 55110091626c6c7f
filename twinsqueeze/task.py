"""What can be measured on each kind of data."""

from dataclasses import dataclass

# Name of the encoder of data that are vectors already: it is unknown.
NO_ENCODER = "none"


@dataclass(frozen=True)
class Task:
    """A kind of data, with the names of the scores that are measured on it; see `evaluation.metrics`.

    Attributes:
        name: Value of the tag `twinsqueeze.task`.
        data: What the data are, for messages.
        examples: What a training goes over.
        unit: What scores are averaged over.
        selection: The score by which models are selected, on dev. Higher is better.
        curve_scores: Measured after every epoch.
        interval_scores: Those with a bootstrap interval.
        main_scores: In the sections dev and test of a run's metrics, in the order of tables.
        search_scores: Measured at every precision that vectors can be stored in.
    """

    name: str
    data: str
    examples: str
    unit: str
    selection: str
    curve_scores: tuple[str, ...]
    interval_scores: tuple[str, ...]
    main_scores: tuple[str, ...]
    search_scores: tuple[str, ...]

    @property
    def scores(self) -> tuple[str, ...]:
        """All scores, in the order of tables."""
        return tuple(dict.fromkeys((*self.main_scores, *self.search_scores)))


# For tables and figures.
SCORE_NAMES = {
    "mse": "MSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman", "ndcg_at_10": "nDCG@10",
    "mrr_at_10": "MRR@10", "neighbor_recall": "neighbor recall", "recall_at_1": "recall@1", "recall_at_10": "recall@10",
    "recall_at_100": "recall@100", "mrr": "MRR",
}  # fmt: skip
_PAIR_SCORES = ("mse", "mae", "pearson", "spearman")
# Pairs with human scores.
SIMILARITY = Task(
    name="similarity",
    data="scored pairs",
    examples="pairs",
    unit="pairs",
    selection="spearman",
    curve_scores=_PAIR_SCORES,
    interval_scores=_PAIR_SCORES,
    main_scores=(*_PAIR_SCORES, "neighbor_recall"),
    search_scores=("spearman", "neighbor_recall", "recall_at_1", "recall_at_10", "mrr"),
)
# Queries with the passages that answer them.
RETRIEVAL = Task(
    name="retrieval",
    data="queries with passages",
    examples="pairs",
    unit="queries",
    selection="ndcg_at_10",
    curve_scores=("ndcg_at_10",),
    interval_scores=("ndcg_at_10", "neighbor_recall"),
    main_scores=("ndcg_at_10", "neighbor_recall"),
    search_scores=("ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10", "recall_at_100", "neighbor_recall"),
)
# Texts or vectors alone.
NEIGHBORS = Task(
    name="neighbors",
    data="texts or vectors alone",
    examples="rows",
    unit="vectors",
    selection="neighbor_recall",
    curve_scores=("neighbor_recall",),
    interval_scores=("neighbor_recall",),
    main_scores=("neighbor_recall",),
    search_scores=("neighbor_recall",),
)
TASKS = {task.name: task for task in (SIMILARITY, RETRIEVAL, NEIGHBORS)}
