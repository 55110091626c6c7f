"""The command compare."""

import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from twinsqueeze.errors import InputError
from twinsqueeze.reporting import formats, run_loader, terminal
from twinsqueeze.reporting.ablation_figures import build_sections
from twinsqueeze.reporting.ablation_table import Row, TrainedRun, build_tables
from twinsqueeze.reporting.formats import Section
from twinsqueeze.tracking import links
from twinsqueeze.tracking.run import check_tracking_server, start_run
from twinsqueeze.utils import console
from twinsqueeze.utils.signals import defer_signals

CURRENT_EXPERIMENT = "current"


def compare(experiment: str = CURRENT_EXPERIMENT, *, output: Path | None = None, overwrite: bool = False) -> None:
    """Compares the finished training runs of an experiment in tables, figures and a report.

    Args:
        experiment: Its name or id, or "current" for the experiment that a new run would be in.
        output: Folder for a copy of the files.
        overwrite: Whether files in `output` may be replaced.

    Raises:
        InputError: If the experiment has no finished training run, or `output` can't be written to.
    """
    if output:
        _check_output(output, overwrite)
    check_tracking_server()
    experiment_id = run_loader.resolve_experiment(None if experiment == CURRENT_EXPERIMENT else experiment)
    loaded = run_loader.load_runs(experiment_id)
    if not loaded.runs:
        problem = " ".join(["no finished training run in the experiment.", *loaded.notes])
        raise InputError(f"{problem} Train with `main` or `ablation`, or name another experiment")
    baselines = run_loader.load_baselines(loaded.runs)
    tables = build_tables(loaded.runs, baselines.rows)
    notes = [*loaded.notes, *baselines.notes]
    for table in tables:
        terminal.print_table(table)
    for note in notes:
        console.info(note)

    with start_run("comparison", "comparison") as run, tempfile.TemporaryDirectory() as folder:
        run.log_params({"experiment": experiment, "compared_runs": len(loaded.runs)})
        run.set_description(formats.summary(tables, notes))
        origin = f"{len(loaded.runs)} runs of experiment {experiment_id}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
        _write_files(Path(folder), build_sections(tables), notes, origin)
        run.log_artifacts(Path(folder), "comparison")
        if output:
            _copy_files(Path(folder), output)
    steps = [("read the report", str(output / "report.html"))] if output else []
    median = _median_run(tables[0].best)
    steps.append(("evaluate the best again", links.mlflow_run_command(run, "evaluate", model=median.run_id)))
    steps.append(("register the best", links.mlflow_run_command(run, "register")))
    terminal.print_next_steps([*steps, *links.ui_steps(run)])


def _median_run(row: Row) -> TrainedRun:
    ordered = sorted(row.runs, key=lambda run: run.metrics["dev/spearman"])
    return ordered[len(ordered) // 2]


def _check_output(output: Path, overwrite: bool) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise InputError(f"output {str(output)!r} can't be written to: {error.strerror}") from error
    if not overwrite and any(output.iterdir()):
        raise InputError(f"output {str(output)!r} is not empty: pass another folder or --overwrite true")


def _copy_files(folder: Path, output: Path) -> None:
    """Copies all files or none."""
    try:
        # Inside the output folder, so that replacing files needs no more space.
        with tempfile.TemporaryDirectory(dir=output, prefix=".") as partial:
            copies = [Path(shutil.copy(file, partial)) for file in sorted(folder.iterdir())]
            with defer_signals(then_stop=True):
                for copy in copies:
                    copy.replace(output / copy.name)
    except OSError as error:
        raise InputError(f"output {str(output)!r} can't be written to: {error.strerror or error}") from error


def _write_files(folder: Path, sections: Sequence[Section], notes: Sequence[str], origin: str) -> None:
    tables = [section.table for section in sections]
    (folder / "table.md").write_text(formats.to_markdown(tables, notes), encoding="utf-8")
    (folder / "table.tex").write_text(formats.to_latex(tables), encoding="utf-8")
    formats.to_dataframe(tables).to_csv(folder / "table.csv", index=False)
    for i, section in enumerate(sections, 1):
        prefix = f"{i}-" if len(sections) > 1 else ""
        for shown in section.figures:
            shown.figure.savefig(folder / f"{prefix}{shown.name}.png", dpi=150)
    (folder / "report.html").write_text(formats.to_html(sections, notes, origin), encoding="utf-8")
