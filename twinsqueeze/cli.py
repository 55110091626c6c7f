"""The command line: one click command per entry point."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from twinsqueeze import __version__
from twinsqueeze.commands.ending import exit_with_error, exit_without_threads, fail_env_run, print_traceback
from twinsqueeze.commands.options import (
    DEVICES,
    PATH,
    SectionedGroup,
    bool_option,
    choices,
    column_option,
    dataset_loader,
    dataset_options,
    experiment_option,
    export_format_option,
    grid_option,
    input_format_option,
    input_option,
    metric_option,
    model_option,
    option,
    precision_option,
    preset_option,
    resume_option,
    study_options,
    training_options,
    verbose_option,
)
from twinsqueeze.errors import InputError, describe_storage_error, one_line
from twinsqueeze.grid import load_grid
from twinsqueeze.presets import BEST_PRESETS
from twinsqueeze.recipe import Recipe
from twinsqueeze.task import SIMILARITY, Task
from twinsqueeze.utils import processes, signals
from twinsqueeze.utils.imports import import_lazily


def run() -> None:
    """Runs the command line.

    Exits with 0; with 2 and one line on standard error for an error that the user can fix; with 128 + the signal's
    number when stopped; with 1 and a traceback for a bug. A run that `mlflow run` made always ends with the reason.
    """
    signals.raise_on_signals()
    sys.excepthook = print_traceback
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id and (child := processes.find_mlflow_run_child(run_id)):
        processes.enter_dir_of_parent(child)
        processes.exit_with_parent(child)
    try:
        cli(standalone_mode=False)
        if tracking := sys.modules.get("twinsqueeze.tracking.run"):  # not imported: nothing was recorded
            tracking.flush()
    except click.ClickException as error:
        exit_with_error(error.format_message())
    except InputError as error:
        exit_with_error(str(error))
    except (signals.Interrupted, click.Abort) as interruption:
        fail_env_run(f"Killed: {interruption}.", "KILLED")
        click.echo(f"twinsqueeze: {interruption}", err=True)
        exit_without_threads(getattr(interruption, "exit_code", 130))
    except Exception as error:
        if description := describe_storage_error(error):
            exit_with_error(f"{one_line(description)}. Free some space or pass another path, and start again")
        fail_env_run(f"Failed: {type(error).__name__}: {error}")
        raise


@click.group(
    cls=SectionedGroup,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "token_normalize_func": lambda name: name.replace("_", "-"),  # `mlflow run` passes --batch_size
    },
    epilog="\b\n"  # click keeps the lines of such a paragraph
    "The same commands are entry points of the MLproject:\n"
    "  mlflow run . -P alpha=0.75\n"
    "  mlflow run . -e evaluate -P model=RUN_ID\n"
    "  mlflow run . -e ablation -P grid=published\n"
    "  mlflow run . -e tune -P dataset=pairs.jsonl\n"
    "  mlflow run . -e compare\n"
    "  mlflow run . -e register",
)
@click.version_option(__version__, prog_name="twinsqueeze")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compress sentence embeddings, keep their cosine similarity, and track it all in MLflow.

    A twin network compresses the vectors of a frozen sentence encoder. It is trained on scored sentence pairs with
    NEFTune-style noise. Runs go to MLFLOW_TRACKING_URI, by default sqlite:///mlflow.db in the working directory.
    Relative paths are relative to the working directory, also under `mlflow run /path/to/project`.
    Embeddings are cached in TWINSQUEEZE_CACHE, by default the user's cache folder. Checkpoints of unfinished trainings
    are in TWINSQUEEZE_STATE, by default the user's state folder.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("main", epilog="Example: twinsqueeze main --alpha 0.75 --dataset stsb --seed 1")
@training_options()
def main_command(**options: Any) -> None:
    """Train a compressor and evaluate it on dev and test, in one run."""
    _train(**options, on_test=True)


@cli.command("train", epilog="Example: twinsqueeze train --alpha 0.75 --dim 16")
@training_options()
def train_command(**options: Any) -> None:
    """Train a compressor and evaluate it on dev; test is not read."""
    _train(**options, on_test=False)


@cli.command("best", epilog="Example: twinsqueeze best --recipe best-16 --dataset stsb")
@preset_option
@training_options(preset=True)
def best_command(recipe: str, **options: Any) -> None:
    """Train a preset recipe and evaluate it on dev and test.

    The presets are in twinsqueeze/recipes/. best: 32 bytes per vector; best-16 and best-64: 16 and 64 bytes; search
    and search-16: for search in text that differs from STS-B; floats: float32 vectors; published: the defaults of main.
    pairs and pairs-16: 32 and 16 bytes for queries with the passages that answer them; vectors and vectors-16: the same
    for texts or vectors alone.
    """
    given = {name: value for name, value in options.items() if value is not None}
    settings: dict[str, Any] = {
        name: given.pop(name) for name in ("resume", "verbose", "score_max", "columns") if name in given
    }
    load = dataset_loader(settings)

    def choose_recipe(task: Task) -> Recipe:
        return Recipe.preset(BEST_PRESETS[task] if recipe == "auto" else recipe, **given)

    choose_recipe(SIMILARITY)  # raises for wrong options
    import_lazily("commands.train").train(choose_recipe, load=load, on_test=True, **settings)


def _train(*, on_test: bool, resume: bool, verbose: bool, **options: Any) -> None:
    load = dataset_loader(options)
    recipe = Recipe.parse(options)
    import_lazily("commands.train").train(lambda _: recipe, load=load, on_test=on_test, resume=resume, verbose=verbose)


@cli.command("evaluate", epilog="Example: twinsqueeze evaluate --model 0123456789abcdef0123456789abcdef --split test")
@model_option
@option("dataset", "As for main, or `same` for the data that the model was trained on.", default="same", metavar="TEXT")
@option("split", "Pairs to evaluate on.", default="test", metavar=choices(("train", "dev", "test")))
@option("encoder", "The sentence encoder.  [default: the encoder of the training]", metavar="TEXT")
@option("device", str(Recipe.model_fields["device"].description), default="auto", metavar=choices(DEVICES))
@dataset_options
@verbose_option
def evaluate_command(**options: Any) -> None:
    """Evaluate a trained compressor in a run of its own."""
    Recipe.parse({"device": options["device"]})
    module = import_lazily("commands.evaluate")
    module.evaluate(module.EvaluationOptions(**options))


@cli.command("ablation", epilog="Example: twinsqueeze ablation --grid published --dataset stsb")
@grid_option
@option("dataset", "As for main, or `grid` for the file's.", default="grid")
@option("device", "As for main, or `grid` for the file's.", default="grid", metavar=choices(("grid", *DEVICES)))
@bool_option("force", "Train recipes again that the experiment has already trained on the same data.")
@resume_option
@dataset_options
@verbose_option
def ablation_command(grid: str, dataset: str, device: str, **options: Any) -> None:
    """Train every combination of a grid, one run each.

    Recipes that differ only in alpha and seed train together, as batched matrix products. A grid that was interrupted
    resumes when the command is started again.
    """
    given = {name: value for name, value in (("dataset", dataset), ("device", device)) if value != "grid"}
    recipes = load_grid(grid, **given)
    load = dataset_loader(options)
    module = import_lazily("commands.ablation")
    module.run_ablation(grid, recipes, module.AblationOptions(load=load, **options))


@cli.command("tune", epilog="Example: twinsqueeze tune --dataset pairs.jsonl --trials 20")
@study_options
@resume_option
@dataset_options
@verbose_option
def tune_command(**options: Any) -> None:
    """Search for the recipe that is best on your data.

    Optuna proposes recipes from a search space, which starts from the preset for the kind of data. Trials are scored on
    dev, and stopped if they fall behind. The best recipe and the start recipe are then trained with fresh seeds and
    compared. Only these runs are evaluated on test. The same command resumes an interrupted study. Needs Optuna.
    """
    Recipe.parse({name: options[name] for name in ("seed", "encoder", "dataset", "device")})  # raises for wrong ones
    module, load = import_lazily("commands.tune"), dataset_loader(options)
    module.tune(module.TuneOptions(**options, load=load))


@cli.command("compare", epilog="Example: twinsqueeze compare --output results")
@experiment_option
@option("output", "Folder for the tables, figures and the report.  [default: none]", type=PATH, metavar="FOLDER")
@bool_option("overwrite", "Write to an output folder that is not empty; files of the same names are replaced.")
@verbose_option
def compare_command(experiment: str, **options: Any) -> None:
    """Build the ablation table of an experiment's runs, with figures and a report.

    Runs that differ only in their seed become one row. Runs on other data, encoders, labels or losses get a table of
    their own.
    """
    import_lazily("commands.compare").compare(experiment, **options)


@cli.command("register", epilog="Example: twinsqueeze register --experiment ablation")
@experiment_option
@metric_option
@option("dataset", "Name of the runs' data; `any` if the experiment has runs on one dataset only.", default="any")
@bool_option("rollback", "Restore the previous champion; registers nothing.")
def register_command(experiment: str, **options: Any) -> None:
    """Register the best run as a version of the model `twinsqueeze`.

    Selects the recipe with the best mean over seeds, then the best of its seeds, both on dev. The new version becomes
    the champion, models:/twinsqueeze@champion, only if it is better than the present champion on the same dev data by
    the 95% interval of a paired bootstrap. Otherwise it becomes the challenger.
    """
    import_lazily("commands.register").register(experiment, **options)


@cli.command("export", epilog="Example: twinsqueeze export --model models:/twinsqueeze@champion --output model")
@model_option
@option("output", "Folder to write; must be empty or not exist.", required=True, type=PATH, metavar="FOLDER")
@export_format_option
@precision_option
@bool_option("overwrite", "Replace an earlier export.")
def export_command(model: str, output: Path, **options: Any) -> None:
    """Write a model to a folder that needs neither MLflow nor this package."""
    import_lazily("commands.export").export(model, output, **options)


@cli.command("compress", epilog="Example: twinsqueeze compress --input vectors.npy --model RUN_ID --output small.npy")
@input_option
@model_option
@option(
    "output",
    "A .npy or .parquet file for the compressed vectors, in the order of the input's rows; or a .faiss file: an index "
    "with them that takes the encoder's vectors as queries.",
    required=True,
    type=PATH,
    metavar="FILE",
)
@precision_option
@input_format_option
@column_option
@option("encoder", "Encoder of texts: same, for the encoder of the training, or as for main.", default="same")
@option(
    "device", "Where texts are encoded. Vectors are compressed on the CPU.", default="auto", metavar=choices(DEVICES)
)
@option(
    "ivf",
    "Lists of an inverted file, which makes searches in a .faiss file faster and approximate: none; a number; auto for "
    "4 * sqrt(rows), at most rows / 30.",
    default="none",
    metavar="[none|auto|INTEGER]",
)
@bool_option("overwrite", "Replace an existing output.")
def compress_command(**options: Any) -> None:
    """Compress vectors or texts with a trained model.

    The output appears whole or not at all. Memory does not grow with the number of rows; the index of a .faiss file is
    built in memory. Encoded texts are cached: a command that was interrupted encodes only the rest when it is started
    again.
    """
    Recipe.parse({"device": options["device"]})
    for name, default in (("column", "auto"), ("encoder", "same")):
        options[name] = None if options[name] == default else options[name]
    module = import_lazily("commands.compress")
    module.compress(module.CompressOptions(**options))


@cli.command("sync", epilog="Example: twinsqueeze sync --list")
@click.option("--list", "listed", is_flag=True, show_default=True, help="List the pending runs and upload nothing.")
@click.option("--discard", metavar="RUN_ID", help="Delete the pending records of a run.  [default: none]")
def sync_command(**options: Any) -> None:
    """Upload records that the tracking server has not received.

    The records of a run stay in TWINSQUEEZE_STATE, by default the user's state folder, until the server that
    MLFLOW_TRACKING_URI named has received all of them. This command uploads what an ended or killed command left. A
    run without an end becomes KILLED. Nothing is uploaded twice.
    """
    import_lazily("commands.sync").sync(**options)
