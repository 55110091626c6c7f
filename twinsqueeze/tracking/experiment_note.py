"""The note of an experiment: what MLflow's UI shows above its runs."""

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from twinsqueeze.tracking.tags import KIND

# The UI shows the first paragraph until the note is unfolded.
NOTE = f"""\
Runs of TwinSqueeze. For trainings only, filter by ``tags.`{KIND}` = 'train'``.

- `dev/spearman` and `test/spearman`: correlation of the compressed pairs' cosines with human scores; higher is better.
  Choose models by dev; test is only reported. `pearson` is the linear correlation.
- `mse` and `mae`: squared and absolute error of the cosines to the labels; lower is better.
- `ndcg_at_10`: search quality on queries with passages, by their judgments; higher is better.
- `neighbor_recall`: share of a sentence's or vector's 10 nearest neighbors that compression keeps.
- `train/loss`: training loss with noise; `train/clean_loss`: without noise.
- `search/`: bytes per vector, search scores, and scores of other storage forms, such as `search/dev_spearman_int8`.
- `uncertainty/`: 95% intervals over pairs or queries. `time/`: seconds of training.
- `best-a0-s1-dim64` is a run of the preset `best` with alpha 0, seed 1 and another dim. The default recipe is named by
  its compressor, such as `mlp32`.
- Group by `alpha` for means over seeds. `compare` builds the table with intervals and baselines.
"""


def describe_experiment(experiment_id: str) -> None:
    """Give an experiment the note, unless it has one or had one that its users deleted."""
    client = mlflow.MlflowClient()
    if MLFLOW_RUN_NOTE not in client.get_experiment(experiment_id).tags:
        client.set_experiment_tag(experiment_id, MLFLOW_RUN_NOTE, NOTE)
