"""The parameters of runs, as users passed them."""

import shlex

from mlflow.entities import Run, SourceType
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_TYPE


def decode_params(run: Run) -> dict[str, str]:
    """Return a run's parameters as they were passed; `mlflow run` stores them quoted for the shell."""
    params: dict[str, str] = run.data.params
    if run.data.tags.get(MLFLOW_SOURCE_TYPE) != SourceType.to_string(SourceType.PROJECT):
        return dict(params)
    return {name: _unquote(value) for name, value in params.items()}


def _unquote(text: str) -> str:
    """Return the text that `shlex.quote` quotes as `text`; `text` itself if there is none."""
    try:
        words = shlex.split(text)
    except ValueError:  # an unpaired quotation mark
        return text
    return words[0] if len(words) == 1 and shlex.quote(words[0]) == text else text
