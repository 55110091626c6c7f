"""Studies: proposals of parameters by Optuna, and the finished trials in Optuna's storage.

A proposal depends on the seed, its number and the trials of the rounds before it. An interrupted study therefore tries
the same parameters as an uninterrupted one, and so does a study that is started again.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from twinsqueeze.errors import InputError, one_line
from twinsqueeze.training.loop import EpochMetrics
from twinsqueeze.tuning.space import Choices, Params, Range, SearchSpace
from twinsqueeze.utils.files import state_dir

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import FrozenTrial, TrialState, create_trial
except ModuleNotFoundError:
    raise InputError('tune needs optuna: pip install "optuna>=5,<6"') from None

optuna.logging.set_verbosity(optuna.logging.ERROR)
COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
_STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}
# A trial is pruned if its best score so far is below the median of completed trials at the same share of a training.
STARTUP_TRIALS = 5  # completed before any is pruned
MIN_PERCENT = 25  # of a training, before it is pruned
SCORES, REASON, RECIPE = "scores", "reason", "recipe_digest"  # attributes of stored trials


@dataclass(frozen=True)
class TrialResult:
    """A finished trial."""

    number: int
    params: Params
    state: str  # complete, pruned or failed
    value: float  # the selection score on dev after the last epoch, mean over seeds; NaN if it failed
    curve: Mapping[int, float]  # that score by the share of the training, in percent
    scores: Mapping[str, float] = field(default_factory=dict)  # all scores on dev, means over seeds
    reason: str = ""  # why it failed
    recipe_digest: str = ""
    # Losses and scores by epoch, means over seeds; of stored trials empty.
    history: Sequence[EpochMetrics] = field(default=(), repr=False)

    @property
    def is_complete(self) -> bool:
        """Whether it was trained to the end."""
        return self.state == COMPLETE


@dataclass(frozen=True)
class StudyOptions:
    """What fixes the trials of a study besides its space: the seed, and how many are proposed at once.

    With `grid`, all combinations of the space are tried instead of proposals.
    """

    seed: int
    round_size: int
    grid: Sequence[Params] | None = None


class Pruner:
    """Decides which trials of a round are pruned; safe to use from several threads."""

    def __init__(self, completed: optuna.Study) -> None:
        self._completed = completed
        self._pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, MIN_PERCENT)

    def should_prune(self, curve: Mapping[int, float]) -> bool:
        """Returns whether a trial with these scores by percent of the training is to be pruned."""
        trial = create_trial(state=TrialState.RUNNING, intermediate_values=dict(curve))
        return self._pruner.prune(self._completed, trial)


class Study:
    """The finished trials of a search space in an Optuna storage, and what to try next."""

    def __init__(self, space: SearchSpace, options: StudyOptions, stored: optuna.Study) -> None:
        self.space = space
        self._options = options
        self._stored = stored
        self._distributions = {name: _distribution(each) for name, each in space.parameters.items()}
        self.trials: list[TrialResult] = [_to_result(trial) for trial in stored.get_trials(deepcopy=False)]

    @property
    def best(self) -> TrialResult:
        """The completed trial with the best value; raises an `InputError` if there is none."""
        completed = [trial for trial in self.trials if trial.is_complete]
        if not completed:
            reasons = [trial.reason for trial in self.trials if trial.reason]
            raise InputError(f"every trial failed; the first error: {reasons[0]}")
        return max(completed, key=lambda trial: trial.value)

    def next_round(self, num_trials: int) -> tuple[dict[int, Params], Pruner]:
        """Returns the parameters of the next trials by number, none after `num_trials`, and their pruner."""
        size = self._options.round_size
        first = len(self.trials) // size * size
        known = self._in_memory(first)
        grid = self._options.grid
        numbers = range(first, min(first + size, num_trials if grid is None else len(grid)))
        proposals = {n: self._propose(known, n) if grid is None else grid[n] for n in numbers}
        return {number: proposals[number] for number in numbers if number >= len(self.trials)}, Pruner(known)

    def _in_memory(self, count: int) -> optuna.Study:
        """Returns a study of the first trials, to which proposals are added as running trials."""
        study = optuna.create_study(direction="maximize")
        study.add_trials(self._stored.get_trials(deepcopy=False)[:count])
        if not count:
            study.enqueue_trial(self.space.start_params())
        return study

    def _propose(self, known: optuna.Study, number: int) -> Params:
        seed = int(np.random.SeedSequence((self._options.seed, number)).generate_state(1)[0])
        known.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        return known.ask(self._distributions).params

    def add(self, result: TrialResult) -> None:
        """Stores the next finished trial."""
        value = result.value if result.state == COMPLETE else None
        trial = create_trial(
            state=_STATES[result.state],
            value=value,
            params=result.params,
            distributions=self._distributions,
            intermediate_values=dict(result.curve),
            user_attrs={SCORES: dict(result.scores), REASON: result.reason, RECIPE: result.recipe_digest},
        )
        self._stored.add_trial(trial)  # in one transaction
        self.trials.append(result)

    def importances(self) -> dict[str, float]:
        """Returns the share of the variance of the completed trials' values that each parameter explains (fANOVA).

        All are 0 if the values are equal.
        """
        shares = dict.fromkeys(self._distributions, 0.0)
        if len({trial.value for trial in self.trials if trial.is_complete}) > 1:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            with suppress(RuntimeError):  # the values are nearly equal
                shares |= optuna.importance.get_param_importances(self._stored, evaluator=evaluator)
        return shares


@contextmanager
def open_study(name: str, space: SearchSpace, options: StudyOptions, *, resume: bool) -> Iterator[Study]:
    """Opens the study of a name in the state folder, and locks it against other processes until the context ends.

    It is created if it does not exist, and again unless `resume`.
    """
    path = state_dir() / "studies" / f"{name}.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path.with_suffix(".lock")).acquire(blocking=False)
    except Timeout:
        raise InputError("another process runs this study: wait for it, or pass another --seed") from None
    with lock:
        if not resume:
            path.unlink(missing_ok=True)
        # A path in an address would be decoded.
        engine_options = {"creator": partial(sqlite3.connect, path)}
        try:
            storage = optuna.storages.RDBStorage("sqlite:///study.db", engine_options)
            stored = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise InputError(
                f"study {path} can't be opened ({one_line(error)}): --resume false starts again"
            ) from error
        try:
            yield Study(space, options, stored)
        finally:
            storage.engine.dispose()


def _distribution(parameter: Range | Choices) -> BaseDistribution:
    if not isinstance(parameter, Range):
        return CategoricalDistribution(list(parameter))
    options: dict[str, Any] = {"log": parameter.log, "step": parameter.step}
    if parameter.is_integer:
        return IntDistribution(int(parameter.low), int(parameter.high), **options)
    return FloatDistribution(parameter.low, parameter.high, **options)


def _to_result(trial: FrozenTrial) -> TrialResult:
    state = next(name for name, state in _STATES.items() if state == trial.state)
    curve, attributes = trial.intermediate_values, trial.user_attrs
    value = trial.value if trial.value is not None else (curve[max(curve)] if curve else np.nan)
    return TrialResult(
        trial.number, trial.params, state, value, curve, attributes[SCORES], attributes[REASON],
        recipe_digest=attributes[RECIPE],
    )  # fmt: skip
