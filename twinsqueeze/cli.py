"""One click command an entry point. PyTorch and MLflow are imported only once a command has its arguments."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import click

from twinsqueeze import __version__
from twinsqueeze.errors import InputError, describe_storage_error, one_line
from twinsqueeze.grid import load_grid
from twinsqueeze.recipe import PRESETS, Recipe, load_preset
from twinsqueeze.utils import signals
from twinsqueeze.utils.text import escape_control_chars, redact_credentials

Command = Callable[..., None]
# Recipe fields that no preset sets.
PRESET_INDEPENDENT = ("seed", "encoder", "dataset", "device")


def run() -> None:
    """Runs the command line.

    Exits with 0; with 2 and one line on standard error for what the user can mend; with 128 + the signal's number when
    stopped; with 1 and a traceback for a fault of ours. A run that `mlflow run` made always ends with the reason.
    """
    signals.raise_on_signals()
    sys.excepthook = _print_traceback
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        signals.exit_with_parent(run_id)
    try:
        cli(standalone_mode=False)
        if tracking := sys.modules.get("twinsqueeze.tracking.run"):  # else nothing was recorded
            tracking.flush()
    except (InputError, click.ClickException) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        line = " ".join(text.split())
        _exit_with_error(line)
    except (signals.Interrupted, click.Abort) as stop:
        _fail_env_run(f"Killed: {stop}.", "KILLED")
        click.echo(f"twinsqueeze: {stop}", err=True)
        sys.exit(getattr(stop, "exit_code", 130))
    except Exception as error:
        if trouble := describe_storage_error(error):
            _exit_with_error(f"{one_line(trouble)}. Make room, or name another place, and start again")
        _fail_env_run(f"Failed: {type(error).__name__}: {error}")
        raise


def _exit_with_error(line: str) -> NoReturn:
    _fail_env_run(f"Failed: {line}")
    click.echo(f"twinsqueeze: {escape_control_chars(redact_credentials(line))}", err=True)
    sys.exit(2)


def _print_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Prints a traceback without the passwords of addresses, which libraries put into their errors."""
    click.echo(redact_credentials("".join(traceback.format_exception(kind, error, where))), err=True, nl=False)


def _fail_env_run(reason: str, status: str = "FAILED") -> None:
    if os.environ.get("MLFLOW_RUN_ID"):  # gone once the run is taken up, which then ends it itself
        from twinsqueeze.tracking.run import fail_env_run  # noqa: PLC0415 - MLflow, where there is a run

        fail_env_run(reason, status)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\n"  # click leaves the lines of such a paragraph as they are
    "The same commands are entry points of the MLproject:\n"
    "  mlflow run . -P alpha=0.75\n"
    "  mlflow run . -e evaluate -P model=RUN_ID\n"
    "  mlflow run . -e ablation -P grid=experiments/published.yaml\n"
    "  mlflow run . -e compare\n"
    "  mlflow run . -e register",
)
@click.version_option(__version__, prog_name="twinsqueeze")
def cli() -> None:
    """Squeeze sentence embeddings to a few numbers that keep their cosine, and record it all in MLflow.

    A twin network compresses the vectors of a frozen sentence encoder, trained on scored sentence pairs with
    NEFTune-style noise. Runs go where MLFLOW_TRACKING_URI says, by default to sqlite:///mlflow.db here. Embeddings
    are cached in TWINSQUEEZE_CACHE, by default the user's cache folder; trainings that are not finished are kept in
    TWINSQUEEZE_STATE, by default the user's folder for state.
    """


def _option_names(field: str) -> list[str]:
    """An option's spellings, --batch-size for people and --batch_size for `mlflow run -P batch_size=`, and its name."""
    return list(dict.fromkeys([f"--{field.replace('_', '-')}", f"--{field}", field]))


def recipe_options(*, preset: bool = False) -> Callable[[Command], Command]:
    """Adds an option for every field of the recipe; the recipe validates the values.

    Args:
        preset: Whether the defaults are those of a preset, which `--recipe` names.
    """

    def decorate(command: Command) -> Command:
        for name, field in reversed(Recipe.model_fields.items()):
            kind = getattr(field.annotation, "__name__", "choice")
            metavar = {"float": "NUMBER", "int": "INTEGER", "str": "TEXT"}.get(kind, "NAME")
            from_preset = preset and name not in PRESET_INDEPENDENT
            default: str | None = f"{field.default}"
            help_ = field.description
            if from_preset:
                default, help_ = None, f"{help_}  [default: the preset's]"
            command = click.option(
                *_option_names(name), default=default, show_default=not from_preset, metavar=metavar, help=help_
            )(command)
        return command

    return decorate


def bool_option(name: str, help_: str) -> Callable[[Command], Command]:
    """An option that is off until it is given, alone or with a value, since `mlflow run` gives every parameter one."""
    return click.option(
        *_option_names(name),
        type=bool,
        is_flag=False,
        flag_value="true",
        default=False,
        show_default=True,
        metavar="[BOOLEAN]",
        help=help_,
    )


score_max_option = click.option(
    *_option_names("score_max"),
    type=float,
    metavar="NUMBER",
    help="Upper end of the data's scores, which begin at 0.  [default: 5; STS-B from the Hub: 1]",
)

resume_option = click.option(
    *_option_names("resume"),
    type=bool,
    default=True,
    show_default=True,
    metavar="BOOLEAN",
    help="Go on where the same training was interrupted, however it was; the weights are the same, bit for bit. false "
    "begins anew.",
)


@cli.command("main", epilog="Example: twinsqueeze main --alpha 0.75 --dataset stsb --seed 1")
@recipe_options()
@resume_option
@score_max_option
def main_command(score_max: float | None, resume: bool, **fields: Any) -> None:
    """Train a compressor and evaluate it on dev and test, in one run."""
    _train(fields, score_max, on_test=True, resume=resume)


@cli.command("train", epilog="Example: twinsqueeze train --alpha 0.75 --dim 16")
@recipe_options()
@resume_option
@score_max_option
def train_command(score_max: float | None, resume: bool, **fields: Any) -> None:
    """Train a compressor, look at dev and leave test alone."""
    _train(fields, score_max, on_test=False, resume=resume)


@cli.command("best", epilog="Example: twinsqueeze best --recipe best-16 --dataset stsb")
@click.option(
    *_option_names("recipe"),
    default="best",
    show_default=True,
    metavar="NAME",
    help=f"The preset: {', '.join(PRESETS)}. Other options override its fields.",
)
@recipe_options(preset=True)
@resume_option
@score_max_option
def best_command(recipe: str, score_max: float | None, resume: bool, **fields: Any) -> None:
    """Train a preset recipe and evaluate it on dev and test.

    The presets are in twinsqueeze/recipes/. best: 32 bytes per vector; best-16: 16 bytes; search and search-16: the
    same sizes for search in text that differs from STS-B; floats: float32 vectors; published: the defaults of main.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    _train(load_preset(recipe) | given, score_max, on_test=True, resume=resume)


def _train(fields: dict[str, Any], score_max: float | None, *, on_test: bool, resume: bool) -> None:
    recipe = Recipe.parse(fields)
    from twinsqueeze.commands import train  # noqa: PLC0415 - help and refusals do not wait for it

    train.train(recipe, score_max=score_max, on_test=on_test, resume=resume)


@cli.command("evaluate", epilog="Example: twinsqueeze evaluate --model 0123456789abcdef0123456789abcdef --split test")
@click.option("--model", required=True, metavar="MODEL", help="A run's id, a model's URI or a folder.")
@click.option(
    "--dataset",
    default="same",
    show_default=True,
    metavar="TEXT",
    help="Scored sentence pairs: same, for the data that the model was trained on, or as for main.",
)
@click.option("--split", default="test", show_default=True, metavar="NAME", help="Which pairs: train, dev or test.")
@click.option("--encoder", metavar="TEXT", help="The sentence encoder.  [default: the one it was trained with]")
@click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help=Recipe.model_fields["device"].description
)
@score_max_option
def evaluate_command(**options: Any) -> None:
    """Evaluate a trained compressor in a run of its own."""
    Recipe.parse({"device": options["device"]})
    from twinsqueeze.commands import evaluate  # noqa: PLC0415 - help and refusals do not wait for it

    evaluate.evaluate(options.pop("model"), evaluate.EvaluationOptions(**options))


@cli.command("ablation", epilog="Example: twinsqueeze ablation --grid experiments/published.yaml --dataset stsb")
@click.option(
    *_option_names("grid"),
    required=True,
    metavar="FILE",
    help="A YAML file that gives fields of the recipe lists of values.",
)
@click.option(
    *_option_names("dataset"),
    default="grid",
    show_default=True,
    metavar="NAME",
    help="As for main, or `grid` for what the file says.",
)
@click.option(
    *_option_names("device"),
    default="grid",
    show_default=True,
    metavar="NAME",
    help="As for main, or `grid` for what the file says.",
)
@bool_option("force", "Train also what a finished run of the experiment has trained on the same data.")
@resume_option
@score_max_option
def ablation_command(grid: str, **options: Any) -> None:
    """Train every combination of a grid, a run each.

    All are trained together, as batched matrix products. A grid that was stopped or killed goes on where it stood when
    it is started again.
    """
    given = {name: options[name] for name in ("dataset", "device") if options[name] != "grid"}
    load_grid(grid, **given)
    from twinsqueeze.commands import ablation  # noqa: PLC0415 - help and refusals do not wait for it

    ablation.run_ablation(grid, ablation.AblationOptions(**options))


@cli.command("compare", epilog="Example: twinsqueeze compare --output results")
@click.option(
    *_option_names("experiment"),
    default="current",
    show_default=True,
    metavar="NAME",
    help="The name or id of the experiment whose runs are compared; `current` is the one that a run started now is in.",
)
@click.option(
    *_option_names("output"),
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="A folder that gets the tables, figures and the report as well.  [default: none]",
)
@bool_option("overwrite", "Write to an output folder that is not empty; files of the same names are replaced.")
def compare_command(**options: Any) -> None:
    """Build the ablation's table from an experiment's runs.

    Writes figures and a report too. Runs that differ by seed alone become a row; runs on other data, encoders, labels
    or objectives another table.
    """
    from twinsqueeze.commands import compare  # noqa: PLC0415 - help and refusals do not wait for it

    compare.compare(options.pop("experiment"), **options)


@cli.command("register", epilog="Example: twinsqueeze register --experiment ablation")
@click.option(
    *_option_names("experiment"),
    default="current",
    show_default=True,
    metavar="NAME",
    help="The name or id of the experiment whose best run is registered; `current` is the one that a run started now "
    "is in.",
)
@click.option(
    *_option_names("metric"),
    default="dev/spearman",
    show_default=True,
    metavar="NAME",
    help="What to choose and compare by: dev/spearman, dev/pearson, dev/mse or dev/mae.",
)
@click.option(
    *_option_names("dataset"),
    default="any",
    show_default=True,
    metavar="NAME",
    help="The name of the data whose runs are looked at; `any` where the experiment has runs on one only.",
)
@bool_option("rollback", "Put back the previous champion, and register nothing.")
def register_command(**options: Any) -> None:
    """Make the best run a version of the registered model `twinsqueeze`.

    The recipe with the best mean over seeds is chosen, then the best of its seeds, both on dev. The new version becomes
    the champion, models:/twinsqueeze@champion, only if it is better than the present one on the same dev pairs, by the
    95% interval of a paired bootstrap; otherwise it is the challenger.
    """
    from twinsqueeze.commands.register import register  # noqa: PLC0415 - help and refusals do not wait for it

    register(options.pop("experiment"), **options)


@cli.command("export", epilog="Example: twinsqueeze export --model models:/twinsqueeze@champion --output model")
@click.option(*_option_names("model"), required=True, metavar="MODEL", help="A run's id, a model's URI or a folder.")
@click.option(
    *_option_names("output"),
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where to: a folder that is not there yet, or empty.",
)
@click.option(
    *_option_names("format"),
    default="folder",
    show_default=True,
    metavar="NAME",
    help="folder: a sentence-transformers model; safetensors: the compressor alone; onnx: both as graphs, checked "
    "against PyTorch.",
)
@bool_option("overwrite", "Replace an earlier export.")
def export_command(**options: Any) -> None:
    """Write a model to a folder that needs neither MLflow nor this package."""
    from twinsqueeze.commands import export  # noqa: PLC0415 - help and refusals do not wait for it

    export.export(options.pop("model"), options.pop("output"), **options)


@cli.command("compress", epilog="Example: twinsqueeze compress --input vectors.npy --model RUN_ID --output small.npy")
@click.option(
    *_option_names("input"),
    required=True,
    metavar="FILE",
    help="Vectors or texts: .npy, .parquet, .csv, .jsonl or .txt, a row each; - for standard input.",
)
@click.option(*_option_names("model"), required=True, metavar="MODEL", help="A run's id, a model's URI or a folder.")
@click.option(
    *_option_names("output"),
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .npy or .parquet file for the compressed vectors, in the order of the input's rows.",
)
@click.option(
    *_option_names("precision"),
    default="auto",
    show_default=True,
    metavar="NAME",
    help="float32, int8 (a byte a number, scaled as the train sentences were), product (a byte for each part, "
    "of a model trained so), binary or ubinary (a bit a number); auto for what the model was trained as.",
)
@click.option(
    *_option_names("format"),
    default="auto",
    show_default=True,
    metavar="NAME",
    help="What the input is: npy, parquet, csv, jsonl, txt, or auto for what its name ends in; standard input is npy "
    "or a text a line.",
)
@click.option(
    *_option_names("column"),
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Where the input has columns, or keys, the one to compress; auto for the only one that it can be. A .csv of "
    "numbers alone is taken for vectors unless its column of texts is named.",
)
@click.option(
    *_option_names("encoder"),
    default="same",
    show_default=True,
    metavar="TEXT",
    help="What turns texts into vectors: same, for the encoder that the model was trained with, or as for main.",
)
@click.option(
    *_option_names("device"),
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Where texts are encoded: auto, cpu or cuda. Vectors are compressed on the CPU.",
)
@bool_option("resume", "Go on where the same command was interrupted.")
@bool_option("overwrite", "Replace an output that is there.")
def compress_command(**options: Any) -> None:
    """Compress a file of vectors or texts with a trained model.

    The output appears whole or not at all. It needs no more memory for more rows.
    """
    options["column"] = None if options["column"] == "auto" else options["column"]
    options["encoder"] = None if options["encoder"] == "same" else options["encoder"]
    from twinsqueeze.commands import compress  # noqa: PLC0415 - help and refusals do not wait for it

    compress.compress(options.pop("input"), options.pop("model"), options.pop("output"), **options)


@cli.command("sync", epilog="Example: twinsqueeze sync --list")
@click.option("--list", "listed", is_flag=True, show_default=True, help="Say what is kept, and send nothing.")
@click.option(
    "--discard", metavar="RUN_ID", help="Delete the record of a run that nobody wants any more.  [default: none]"
)
def sync_command(**options: Any) -> None:
    """Send what the tracking server did not take.

    A run's record is kept in TWINSQUEEZE_STATE, by default the user's folder for state, until the server that
    MLFLOW_TRACKING_URI named has all of it. This sends what was left when a command ended, or was killed; a run that
    nobody ended becomes KILLED. Nothing is sent twice, however often this is called.
    """
    from twinsqueeze.commands import sync  # noqa: PLC0415 - help and refusals do not wait for it

    sync.sync(**options)
