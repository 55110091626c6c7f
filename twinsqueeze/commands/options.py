"""Options that commands share. Imports neither PyTorch nor MLflow."""

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from twinsqueeze.presets import PRESETS
from twinsqueeze.recipe import Recipe
from twinsqueeze.utils.text import format_value

Command = Callable[..., None]
Decorator = Callable[[Command], Command]
# Recipe fields that no preset sets.
PRESET_INDEPENDENT = ("seed", "encoder", "dataset", "device")
PATH = click.Path(path_type=Path)
DEVICES = get_args(Recipe.model_fields["device"].annotation)
# Of these, "" would be the working directory.
NOT_EMPTY = ("input", "model", "dataset", "encoder", "base")
METAVARS: dict[Any, str] = {float: "NUMBER", int: "INTEGER", str: "TEXT"}
# Sections of a command's help, with the options in each; all others are in the first section.
SECTIONS = {
    "Optimizer": ("batch_size", "lr", "lr_schedule", "weight_decay"),
    "Architecture": ("architecture", "init", "base"),
    "Quantizer": ("quantizer", "subvector_dim", "codes_per_subvector", "codebook_lr"),
    "Loss": ("loss", "infonce_temperature", "label_transform"),
    "Neighborhood loss": (
        "neighbor_weight", "num_neighbors", "num_candidates", "neighbor_temperature", "teacher", "teacher_whitening",
        "teacher_alpha", "teacher_interpolation", "unlabeled_sentences",
    ),
}  # fmt: skip


class SectionedCommand(click.Command):
    """A command whose help lists the options by `SECTIONS`, and that refuses empty names, such as unset variables."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        if empty := next((name for name in NOT_EMPTY if ctx.params.get(name) == ""), None):
            raise click.BadParameter("it is empty", ctx, param_hint=f"'--{empty}'")
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, in the sections that this command has."""
        sections = {name: section for section, names in SECTIONS.items() for name in names}
        records = defaultdict(list)
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                records[sections.get(str(parameter.name), "")].append(record)
        for section in ("", *SECTIONS):
            if records[section]:
                title = section or ("Common options" if len(records) > len(SECTIONS) else "Options")
                with formatter.section(title):
                    formatter.write_dl(records[section])


class SectionedGroup(click.Group):
    """A group of such commands."""

    command_class = SectionedCommand


def option(name: str, help_: str, **settings: Any) -> Decorator:
    """An option that shows its default; `settings` are those of `click.option`.

    People spell it --batch-size, and `mlflow run -P batch_size=` spells it --batch_size: see `token_normalize_func`.
    """
    shown = settings.get("default") is not None
    spelling = f"--{name.replace('_', '-')}"
    return click.option(spelling, name, **{"metavar": "NAME", "show_default": shown, "help": help_, **settings})


def choices(values: Sequence[str]) -> str:
    """The values of an option for its help, such as `[mlp|linear]`; the commands check them."""
    return f"[{'|'.join(values)}]"


TRUE_FALSE = choices(("true", "false"))


def bool_option(name: str, help_: str) -> Decorator:
    """An option that is false until it is given, alone or with a value, since `mlflow run` passes a value always."""
    return option(name, help_, type=bool, is_flag=False, flag_value="true", default="false", metavar=TRUE_FALSE)


def training_options(*, preset: bool = False) -> Decorator:
    """Adds the options of a training and all recipe fields; `preset`: by default those of the preset of `--recipe`."""

    def decorate(command: Command) -> Command:
        command = verbose_option(resume_option(dataset_options(command)))
        for name, field in reversed(Recipe.model_fields.items()):
            metavar = METAVARS.get(field.annotation) or choices(get_args(field.annotation))
            if preset and name not in PRESET_INDEPENDENT:
                command = option(name, f"{field.description}  [default: the preset's]", metavar=metavar)(command)
            else:
                command = option(name, str(field.description), default=format_value(field.default), metavar=metavar)(
                    command
                )
        return command

    return decorate


def study_options(command: Command) -> Command:
    """Adds the options of a study, except how the rows of its dataset are read."""
    spaces = "What is searched: 32-bytes, 16-bytes or floats, in the package for every kind of data; or a YAML file."
    for name in ("device", "dataset", "encoder"):
        field = Recipe.model_fields[name]
        metavar = METAVARS.get(field.annotation) or choices(get_args(field.annotation))
        command = option(name, str(field.description), default=field.default, metavar=metavar)(command)
    for name, help_, default, least in (
        ("seed", "First seed of the trials, and seed of the search.", 0, 0),
        ("confirm", "Fresh seeds for the confirmation.", 5, 1),
        ("seeds", "Seeds per trial, whose mean score counts.", 1, 1),
        ("trials", "Recipes to try.", 50, 1),
    ):
        command = option(name, help_, type=click.IntRange(min=least), default=default, metavar="INTEGER")(command)
    return option("space", spaces, default="32-bytes", metavar="[32-bytes|16-bytes|floats|FILE]")(command)


def dataset_options(command: Command) -> Command:
    """Adds the options that say how the rows of a dataset are read."""
    return columns_option(score_max_option(command))


def dataset_loader(options: dict[str, Any]) -> Callable[..., Any]:
    """Returns `load_dataset` with the `dataset_options`, which are taken out of the options."""
    from twinsqueeze.data.loading import load_dataset  # noqa: PLC0415 - imports NumPy, which --help does without
    from twinsqueeze.utils.console import TERMINAL  # noqa: PLC0415 - as above

    return partial(
        load_dataset,
        reporter=TERMINAL,
        **{name: options.pop(name) for name in ("score_max", "columns") if name in options},
    )


def parse_columns(value: str | None) -> dict[str, str]:
    """Parse names such as "sentence1=text1,score=label"; a name with a comma stands in quotes with its "score="."""
    cells = next(csv.reader([value], skipinitialspace=True), []) if value else []
    columns = dict(cell.partition("=")[::2] for cell in cells)
    if not all(all(item) for item in columns.items()) or len(columns) < len(cells):
        raise click.BadParameter(f"pass names such as sentence1=text1,sentence2=text2,score=label, not {value!r}")
    return columns


model_option = option("model", "A run id, a model URI or a folder.", required=True, metavar="MODEL")
experiment_option = option(
    "experiment", "Name or id of the experiment; `current` is the experiment of new runs.", default="current"
)
score_max_option = option(
    "score_max", "Highest score; the lowest is 0.  [default: 5; STS-B from the Hub: 1]", type=float, metavar="NUMBER"
)
columns_option = option(
    "columns",
    "The dataset's own names of columns, such as sentence1=text1,sentence2=text2,score=label or anchor=title,"
    "positive=body, or text or vector.  [default: recognized]",
    metavar="NAMES",
    callback=lambda _context, _option, value: parse_columns(value),
)
verbose_option = bool_option("verbose", "Print all scores and baselines, not only the most important.")
resume_option = option(
    "resume",
    "Resume an interrupted training bit for bit; false: restart.",
    type=bool,
    default="true",
    metavar=TRUE_FALSE,
)
input_option = option(
    "input",
    "Vectors or texts, one per row: .npy, .parquet, .csv, .tsv, .jsonl or .txt, also gzipped; or a folder of such "
    "files; - for standard input.",
    required=True,
    metavar="FILE",
)
precision_option = option(
    "precision",
    "Of stored vectors: float32; int8 (calibrated on the train sentences); product (the codes of a product quantizer); "
    "binary or ubinary (one bit per dimension); auto for the precision of the training.",
    default="auto",
    metavar=choices(("auto", "float32", "int8", "product", "binary", "ubinary")),
)
input_format_option = option(
    "format",
    "Input format; auto for the file's suffix. Standard input is npy or one text per line.",
    default="auto",
    metavar=choices(("auto", "npy", "parquet", "csv", "tsv", "jsonl", "txt")),
)
preset_option = option(
    "recipe",
    "The preset. Other options override its fields. auto: best for scored pairs, pairs for queries with passages, "
    "vectors for texts or vectors alone.",
    default="auto",
    metavar=choices(("auto", *PRESETS)),
)
grid_option = option(
    "grid",
    "A YAML file that maps recipe fields to lists of values, or the name of a file of experiments/, such as quick.",
    required=True,
    metavar="FILE",
)
metric_option = option(
    "metric",
    "Metric to select and compare by. auto: dev/spearman of scored pairs, dev/ndcg_at_10 of queries with passages, "
    "dev/neighbor_recall of texts or vectors.",
    default="auto",
    metavar=choices(
        ("auto", "dev/spearman", "dev/pearson", "dev/mse", "dev/mae", "dev/ndcg_at_10", "dev/neighbor_recall")
    ),
)
export_format_option = option(
    "format",
    "folder: a sentence-transformers model; safetensors: the compressor alone; onnx: both as graphs, verified against "
    "PyTorch; faiss: an empty FAISS index that takes the encoder's vectors and stores them at --precision.",
    default="folder",
    metavar=choices(("folder", "safetensors", "onnx", "faiss")),
)
column_option = option(
    "column",
    "Column or key to compress, or a pattern such as 'v*' for the columns of the vectors' numbers; auto for the only "
    "possible choice.",
    default="auto",
)
