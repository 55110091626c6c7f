"""The command compare."""

import shutil
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from twinsqueeze.errors import InputError
from twinsqueeze.reporting import report, run_loader, terminal
from twinsqueeze.reporting.ablation_figures import build_sections
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import check_tracking_server, start_run
from twinsqueeze.utils import console
from twinsqueeze.utils.files import check_writable, expand_user, make_dir
from twinsqueeze.utils.signals import defer_signals


def compare(experiment: str, *, output: Path | None = None, overwrite: bool = False, verbose: bool = False) -> None:
    """Compare the finished training runs of an experiment in tables, figures and a report, also copied to `output`."""
    if output:
        output = expand_user(output).absolute()
        _check_output(output, overwrite)
    check_tracking_server()
    experiment_id, runs, skipped = run_loader.load_experiment(experiment)
    tables, missing = run_loader.load_tables(runs)
    tables = [replace(table, shows_all=verbose) for table in tables]
    notes = [*skipped, *missing]
    terminal.print_ablation(tables, verbose=verbose)
    for note in notes:
        console.info(note)
    with start_run("comparison", "comparison") as run, tempfile.TemporaryDirectory() as folder:
        run.log_params({"experiment": experiment, "compared_runs": len(runs)})
        run.set_description(report.summary(tables, notes))
        run.log_metrics(report.best_scores(tables[0]))
        origin = f"{len(runs)} runs of experiment {experiment_id}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
        report.write_report(Path(folder), build_sections(tables), notes, origin)
        run.log_artifacts(Path(folder), "comparison")
        if output:
            _copy_files(Path(folder), output)
    read = [("read the report", str(output / "report.html"))] if output else []
    elsewhere = {} if experiment == "current" else {"experiment": experiment}
    register = "register the best run", links.next_command(run, "register", **elsewhere)
    terminal.print_next_steps([*read, register, *links.ui_steps(run)])


def _check_output(output: Path, overwrite: bool) -> None:
    try:
        check_writable(output)
        is_empty = not output.exists() or not any(output.iterdir())
    except OSError as error:
        raise InputError(f"output {str(output)!r} can't be written to: {error.strerror}") from error
    if not is_empty and not overwrite:
        raise InputError(f"output {str(output)!r} is not empty: pass another folder or --overwrite true")


def _copy_files(folder: Path, output: Path) -> None:
    """Copy all files or none."""
    try:
        # Inside the output folder, so that replacing files needs no more space.
        with make_dir(output), tempfile.TemporaryDirectory(dir=output, prefix=".") as partial:
            copies = [Path(shutil.copy(file, partial)) for file in sorted(folder.iterdir())]
            with defer_signals(then_stop=True):
                for copy in copies:
                    copy.replace(output / copy.name)
    except OSError as error:
        raise InputError(f"output {str(output)!r} can't be written to: {error.strerror or error}") from error
