"""The job compare: the runs of an experiment become tables, figures and a report, in a run of their own."""

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

THIS_EXPERIMENT = "current"


def compare(experiment: str = THIS_EXPERIMENT, *, output: Path | None = None, overwrite: bool = False) -> None:
    """Compares every finished training of an experiment.

    Args:
        experiment: Its name or id, or "current" for the one that a run started now is in.
        output: A folder that gets the files as well.
        overwrite: Whether files of the same names there are replaced.

    Raises:
        InputError: If there is nothing to compare, or the folder can't be written to.
    """
    if output:
        _check_output(output, overwrite)
    check_tracking_server()
    experiment_id = run_loader.resolve_experiment(None if experiment == THIS_EXPERIMENT else experiment)
    found = run_loader.load_runs(experiment_id)
    if not found.runs:
        raise InputError(
            " ".join(["there is no finished training in the experiment to compare.", *found.notes])
            + " Train with `main` or `ablation`, or name the experiment that has them"
        )
    baselines = run_loader.load_baselines(found.runs)
    tables = build_tables(found.runs, baselines.rows)
    notes = [*found.notes, *baselines.notes]
    for table in tables:
        terminal.print_table(table)
    for note in notes:
        console.info(note)

    with start_run("comparison", "comparison") as run, tempfile.TemporaryDirectory() as folder:
        run.log_params({"experiment": experiment, "compared_runs": len(found.runs)})
        run.set_description(formats.summary(tables, notes))
        sections = build_sections(tables)
        _write(Path(folder), sections, notes, experiment_id)
        run.log_artifacts(Path(folder), "comparison")
        if output:
            _copy_atomically(Path(folder), output)
    steps = [("read the report", str(output / "report.html"))] if output else []
    best = tables[0].best
    steps.append(("evaluate the best again", links.mlflow_run_command(run, "evaluate", model=_median_run(best).run_id)))
    steps.append(("put the best in use", links.mlflow_run_command(run, "register")))
    terminal.print_next_steps([*steps, *links.ui_steps(run)])


def _median_run(row: Row) -> TrainedRun:
    """The run whose Spearman on dev is the middle one of its seeds'."""
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
        raise InputError(f"output {str(output)!r} is not empty: name another folder, or give --overwrite true")


def _copy_atomically(folder: Path, output: Path) -> None:
    """Copies the files to another folder, all of them or none."""
    try:
        # Within the output, so that it takes no more room to put them in place.
        with tempfile.TemporaryDirectory(dir=output, prefix=".") as begun:
            copies = [Path(shutil.copy(file, begun)) for file in sorted(folder.iterdir())]
            with defer_signals(then_stop=True):
                for copy in copies:
                    copy.replace(output / copy.name)
    except OSError as error:
        raise InputError(f"output {str(output)!r} can't be written: {error.strerror or error}") from error


def _write(folder: Path, sections: Sequence[Section], notes: Sequence[str], experiment_id: str) -> None:
    tables = [section.table for section in sections]
    (folder / "table.md").write_text(formats.markdown(tables, notes), encoding="utf-8")
    (folder / "table.tex").write_text(formats.latex(tables), encoding="utf-8")
    formats.to_dataframe(tables).to_csv(folder / "table.csv", index=False)
    several = len(sections) > 1
    for i, section in enumerate(sections, 1):
        prefix = f"{i}-" if several else ""
        formats.picture(section.table).savefig(folder / f"{prefix}table.png")
        for shown in section.illustrations:
            shown.figure.savefig(folder / f"{prefix}{shown.name}.png", dpi=150)
    runs = sum(len(row.runs) for table in tables for row in table.rows)
    made = f"{runs} runs of experiment {experiment_id}, compared on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    (folder / "report.html").write_text(formats.render_html(sections, notes, made), encoding="utf-8")
