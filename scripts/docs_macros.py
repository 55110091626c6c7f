"""Macros of the documentation: tables and numbers of experiments/results, recipe fields, presets, repository files."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import click
import pandas as pd
import yaml

from twinsqueeze.cli import cli
from twinsqueeze.presets import PRESETS
from twinsqueeze.recipe import Recipe
from twinsqueeze.reporting.ablation_table import EVALUATED_SPLITS, metric_name
from twinsqueeze.task import SCORE_NAMES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
SHOWN = yaml.safe_load((ROOT / "scripts" / "docs_results.yaml").read_text(encoding="utf-8"))


def define_env(env: Any) -> None:
    """Gives mkdocs-macros the functions that pages call."""
    results_macros = (results_table, number, score, csv_table, log_table)
    for macro in (*results_macros, commands, recipe_fields, presets, repository_file):
        env.macro(macro)
    env.variables["repository"] = repository()


def on_files(files: Any, config: Any) -> Any:
    """Adds the figures of experiments/results that pages show, as experiments/NAME.png (a hook of MkDocs)."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - the tests import this module without MkDocs

    text = "".join(page.content_string for page in files.documentation_pages())
    for name in sorted(set(re.findall(r"\(\.\./experiments/([^)]+)\)", text))):
        files.append(File.generated(config, f"experiments/{name}", abs_src_path=str(RESULTS / name)))
    return files


@cache
def results(experiment: str) -> pd.DataFrame:
    """Returns the table that `compare` wrote for an experiment."""
    return pd.read_csv(RESULTS / experiment / "table.csv")


def repository() -> str:
    """Returns the project's address, from pyproject.toml."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"])


def results_table(name: str) -> str:
    """Returns a table of docs_results.yaml as Markdown."""
    table = SHOWN["tables"][name]
    columns = table["columns"]
    lines = ["| | " + " | ".join(map(_title, columns)) + " |", "|---|" + "---:|" * len(columns)]
    for label, model, *where in table["rows"]:
        found = {"experiment": table["experiment"], "model": model} | (where[0] if where else {})
        lines.append(f"| {label} | " + " | ".join(score(column=column, **found) for column in columns) + " |")
    return "\n".join(lines)


def number(name: str) -> str:
    """Returns a number of docs_results.yaml as text."""
    experiment, model, column, *where = SHOWN["numbers"][name]
    return score(experiment, model, column, **(where[0] if where else {}))


def score(
    experiment: str, model: str, column: str, alpha: float | None = None, form: str = "", digits: int | None = None
) -> str:
    """Returns a result as text, such as `0.8297 ± 0.0012`; with `digits`, the rounded mean alone."""
    table = results(experiment)
    found = table[(table["model"] == model) & (True if alpha is None else table["alpha"] == alpha)]
    if found.empty:
        raise KeyError(f"{experiment} has no row {model!r} with alpha {alpha}")
    values = found.iloc[0]
    if column == "bytes":
        size = {"int8": 1, "binary": 1 / 8}.get(form)
        return f"{int(values['bytes'] if size is None else values['dim'] * size):,}"
    if column.endswith("_gain"):
        mean, low, high = (values[column + end] for end in ("", "_low", "_high"))
        return "" if pd.isna(mean) else f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
    split, name = column.split("/")
    name = metric_name(split, name, form or "float32") if split in EVALUATED_SPLITS else column
    mean, deviation = values[name], values.get(f"{name}_sd")
    if digits is not None:
        return f"{mean:.{digits}f}"
    if "recall" in column:
        return f"{mean:.2f}"
    return f"{mean:.4f}" + ("" if pd.isna(deviation) else f" ± {deviation:.4f}")


def csv_table(name: str, columns: list[str] | None = None) -> str:
    """Returns a file of experiments/results as a Markdown table; columns of numbers are aligned right."""
    table = pd.read_csv(RESULTS / f"{name}.csv", dtype=str, keep_default_na=False, usecols=columns)
    numeric = [all(re.fullmatch(r"[\d.,]*( \(.*\))?", value) for value in table[column]) for column in table.columns]
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "".join("---:|" if each else "---|" for each in numeric)]
    return "\n".join([*lines, *("| " + " | ".join(values) + " |" for values in table.to_numpy())])


def log_table(question: str) -> str:
    """Returns the table of an entry of experiments/LOG.md."""
    log = (ROOT / "experiments" / "LOG.md").read_text(encoding="utf-8")
    entry = log.partition(f": {question}\n")[2].partition("\n## ")[0]
    lines = [line for line in entry.split("\n") if line.startswith("|")]
    if not lines:
        raise KeyError(f"experiments/LOG.md has no table below {question!r}")
    return "\n".join(lines)


def commands() -> str:
    """Returns the help of every command."""
    root = click.Context(cli, info_name="twinsqueeze", terminal_width=84)
    texts = []
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=name, parent=root, terminal_width=84)
        texts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(texts)


def recipe_fields() -> str:
    """Returns a table of all fields of the recipe."""
    lines = ["| field | default | values | meaning |", "|---|---|---|---|"]
    for name, field in Recipe.model_json_schema()["properties"].items():
        allowed = ", ".join(field["enum"]) if "enum" in field else str(field.get("allowed") or _bounds(field))
        lines.append(
            f"| `{name}` | {_shortest(field['default'])} | {allowed} | {field['description'].replace('|', '/')} |"
        )
    return "\n".join(lines)


def presets() -> str:
    """Returns a table of the presets: the fields that differ from the defaults."""
    recipes = {name: Recipe.preset(name) for name in PRESETS}
    fields = [name for name in Recipe.model_fields if len({getattr(r, name) for r in recipes.values()}) > 1]
    lines = ["| | " + " | ".join(f"`{name}`" for name in recipes) + " |", "|---|" + "---:|" * len(recipes)]
    lines.append("| bytes per vector | " + " | ".join(str(r.bytes_per_vector) for r in recipes.values()) + " |")
    lines += [
        f"| `{name}` | " + " | ".join(_shortest(getattr(r, name)) for r in recipes.values()) + " |" for name in fields
    ]
    return "\n".join(lines)


def repository_file(name: str) -> str:
    """Returns a Markdown file of the repository; links to files outside the site become links to the repository."""
    pages = {page["source"]: target for target, page in _included().items()}

    def link(match: re.Match[str]) -> str:
        path = match[1]
        return f"]({pages.get(path, f'{repository()}/blob/main/{path}')})"

    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", link, (ROOT / name).read_text(encoding="utf-8"))


def _included() -> dict[str, dict[str, str]]:
    extra = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=yaml.BaseLoader)["extra"]  # noqa: S506 - reads text alone
    return dict(extra["included"])


def _bounds(field: dict[str, Any]) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if high is not None:
        return f"{low} to {high}"
    return f"above {field['exclusiveMinimum']}" if "exclusiveMinimum" in field else f"at least {low}"


def _shortest(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _title(column: str) -> str:
    split, _, metric = column.rpartition("/")
    if metric.endswith("_gain"):
        return f"gain on {split}"
    return f"{split} {SCORE_NAMES.get(metric, metric)}".strip()
