"""Shortcuts for what takes a second in every command and is tested elsewhere: new stores and figures."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

# A command that is given this variable draws its figures.
DRAW_FIGURES = "DRAW_FIGURES"


def skip_drawing(patch: pytest.MonkeyPatch) -> None:
    """Has figures be built, but saved as noise of about their size."""
    from matplotlib.figure import Figure
    from PIL import Image

    def save_noise(figure: Figure, file: Any, **options: Any) -> None:
        Image.effect_noise((200, 120), 50).save(file, format="png")

    patch.setattr(Figure, "savefig", save_noise)


def copy_tables(patch: pytest.MonkeyPatch, make_once: Callable[[str, Callable[[Path], object]], Path]) -> None:
    """Has new SQLite stores get their tables from a file, which saves MLflow's migrations."""
    from mlflow.store.db import utils
    from sqlalchemy import Engine, create_engine

    create_tables = utils._initialize_tables

    def make(folder: Path) -> None:
        folder.mkdir()
        create_tables(create_engine(f"sqlite:///{folder}/mlflow.db"))

    def copy(engine: Engine) -> None:
        if engine.dialect.name != "sqlite":
            create_tables(engine)
            return
        template = make_once("store-tables", make) / "mlflow.db"
        with closing(sqlite3.connect(template)) as source, closing(sqlite3.connect(engine.url.database)) as target:
            source.backup(target)

    patch.setattr(utils, "_initialize_tables", copy)
