"""The file MLmodel, which describes a model to MLflow."""

from pathlib import Path

import yaml
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME


def read_mlmodel(folder: Path) -> Model:
    """Read the file MLmodel in a folder of any name; MLflow's `Model.load` decodes %20 in the path."""
    return Model.from_dict(yaml.safe_load((folder / MLMODEL_FILE_NAME).read_text(encoding="utf-8")))
