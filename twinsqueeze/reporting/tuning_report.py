"""The result of a study in words: what was found, and whether it beats the recipe that the study started from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan

from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.ablation_table import COLUMN_NAMES, count
from twinsqueeze.reporting.search_table import TextTable
from twinsqueeze.reporting.statistics import MeanDifference, SeedStats
from twinsqueeze.utils.text import format_value

# The share of the variance that a parameter explains, by its name.
Shares = Mapping[str, float]


@dataclass(frozen=True)
class Confirmation:
    """The selection score on dev of the tuned recipe and of the start recipe, over seeds that the study did not use.

    Both are the same values if no trial was better than the start recipe.
    """

    score: str
    tuned: Sequence[float]
    start: Sequence[float]

    @cached_property
    def gain(self) -> MeanDifference:
        """The difference of the means, with its 95% interval."""
        return MeanDifference.between(self.tuned, self.start)

    @property
    def beats_start(self) -> bool:
        """Whether the interval of the difference is above 0."""
        return self.gain.low > 0

    def verdict(self) -> str:
        """Sentences that say whether the tuned recipe is better."""
        if not self.tuned or not self.start:
            return "The trainings with fresh seeds diverged: nothing is confirmed."
        name = COLUMN_NAMES[self.score]
        if self.tuned is self.start:
            scores = f"{name} {SeedStats.of(self.start).format()} over {count(len(self.start), 'fresh seed')}"
            return f"No trial is better on dev than the start recipe, {scores}: keep it."
        scores = (
            f"Over {count(len(self.tuned), 'fresh seed')}, dev {name}: tuned {SeedStats.of(self.tuned).format()}, "
            f"start recipe {SeedStats.of(self.start).format()}."
        )
        return f"{scores} {self._conclusion()}"

    def _conclusion(self) -> str:
        if isnan(self.gain.low):
            return f"The difference is {self.gain.format()}, without an interval: pass --confirm 2 or more."
        interval = f"{self.gain.mean:+.4f}, 95% interval {self.gain.low:+.4f} to {self.gain.high:+.4f}"
        if self.beats_start:
            return f"The tuned recipe beats the start recipe: {interval}."
        if self.gain.high < 0:
            return f"The tuned recipe is worse than the start recipe: {interval}. Keep the start recipe."
        return f"The tuned recipe does not beat the start recipe: {interval}."


def changed_fields(recipe: Recipe, base: Recipe) -> dict[str, object]:
    """The fields of a recipe that differ from another one, except seed, dataset, encoder and device."""
    ignored = {"seed", "dataset", "encoder", "device"}
    values = recipe.model_dump(exclude=ignored)
    return {name: value for name, value in values.items() if value != getattr(base, name)}


def parameter_table(parameters: Mapping[str, Sequence[str]], start: Recipe, tuned: Recipe, shares: Shares) -> TextTable:
    """The start and the tuned value of the recipe fields of each parameter, and the share of the variance it explains.

    `parameters` has the fields by the parameter's name; the share is in the row of the first.
    """
    header = ["field", "start", "tuned", "variance explained"]
    rows = []
    for name, fields in parameters.items():
        for field in fields:
            share = f"{shares[name]:.2f}" if field == fields[0] else ""
            values = [format_value(getattr(recipe, field)) for recipe in (start, tuned)]
            rows.append([field, *values, share])
    return header, rows
