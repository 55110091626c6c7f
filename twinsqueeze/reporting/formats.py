"""The ablation's tables as Markdown, CSV, LaTeX, a picture, and a page that needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from twinsqueeze.reporting import search_table
from twinsqueeze.reporting.ablation_table import EVALUATED_SPLITS, AblationTable, BaselineRow, Row
from twinsqueeze.reporting.statistics import MeanDifference, SeedStats
from twinsqueeze.utils.text import escape_control_chars, escape_mathtext
from twinsqueeze.utils.text import escape_markdown as plain

COLUMN_NAMES = {"mse": "MSE", "mae": "MAE", "pearson": "Pearson", "spearman": "Spearman"}
AFTER_SCORES = ("Spearman gain", "neighbor recall")
ABSENT = "n/a"
# MLflow keeps 8,000 characters of a description.
SUMMARY_LENGTH = 7500
STATISTICS = (
    "Values are mean ± sample standard deviation over seeds. A gain is Spearman less that at alpha 0, all else equal, "
    "with a 95% interval by Welch's t over seeds, not paired. The best row is chosen by mean Spearman on dev; "
    "test took no part in the choice. Neighbor recall: the share of a sentence's ten nearest that are still among "
    "its ten nearest when compressed. Rows without alpha need no labels."
)


@dataclass(frozen=True)
class ReportFigure:
    """A figure for a report.

    Attributes:
        name: Of its file, without suffix.
        caption: What it shows.
        figure: The figure.
    """

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """One table of a report, and its figures."""

    table: AblationTable
    illustrations: Sequence[ReportFigure]


def columns(splits: Sequence[str] = EVALUATED_SPLITS) -> list[str]:
    """What `cells` puts side by side."""
    header = ["model", "alpha", "bytes", "seeds"]
    for split in splits:
        header += [f"{split} {name}" for name in COLUMN_NAMES.values()]
        header += [f"{split} {name}" for name in AFTER_SCORES]
    return [*header, "train loss, noisy", "train loss, clean"]


def cells(table: AblationTable, splits: Sequence[str] = EVALUATED_SPLITS) -> list[list[str]]:
    """The table as text, a list a row: trained compressors first, what needs no labels below."""
    return [_trained(row, splits) for row in table.rows] + [_baseline(row, splits) for row in table.plain_baselines]


def key_columns(table: AblationTable, splits: Sequence[str] = EVALUATED_SPLITS) -> tuple[list[str], list[list[str]]]:
    """The table's most telling columns: a header, and its rows as text."""
    header = columns(splits)
    wanted = ("model", "alpha", "seeds", *(f"{s} {c}" for s in splits for c in ("MSE", "Spearman", *AFTER_SCORES)))
    places = [i for i, name in enumerate(header) if name in wanted]
    return [header[i] for i in places], [[row[i] for i in places] for row in cells(table, splits)]


def summary(tables: Sequence[AblationTable], notes: Sequence[str], limit: int = SUMMARY_LENGTH) -> str:
    """The tables in short, Markdown, for a run's description; rows that do not fit are left out, and that is said."""
    text = ""
    for table in tables:
        header, rows = key_columns(table)
        kept = rows
        head = f"{plain(table.title)}\n\n" + (f"**{plain(table.notice)}**\n\n" if table.notice else "")
        left = limit - len(text) - sum(map(len, (*notes, *table.notes, head, STATISTICS)))
        while kept and len(markdown_table(header, kept)) > left:
            kept = kept[:-1]
        cut = f"\n\n{len(rows) - len(kept)} more rows: see `compare`." if len(kept) < len(rows) else ""
        text += (
            head + markdown_table(header, kept) + cut + "\n\n" + "".join(f"{plain(note)}\n\n" for note in table.notes)
        )
        if cut:
            break
    return text + "".join(f"{plain(note)}\n\n" for note in notes) + STATISTICS


def _trained(row: Row, splits: Sequence[str]) -> list[str]:
    text = [f"{row.name} (best on dev)" if row.best else row.name]
    text += [f"{row.recipe.alpha:g}", f"{row.bytes:,}", f"{len(row.runs)}"]
    for split in splits:
        text += [_spread(row.scores[f"{split}/{name}"]) for name in COLUMN_NAMES]
        text += [_difference(row.gains.get(split)), _spread(row.scores[f"{split}/neighbor_recall"], 2)]
    return [*text, _spread(row.scores["train/loss"]), _spread(row.scores["train/clean_loss"])]


def _baseline(row: BaselineRow, splits: Sequence[str]) -> list[str]:
    draws = next(iter(row.scores.values())).count
    text = [row.name, "", f"{row.bytes:,}", f"{draws} draws" if draws > 1 else ""]
    nothing = SeedStats(float("nan"), float("nan"), 0)
    for split in splits:
        text += [_spread(row.scores.get(f"{split}/{name}", nothing)) for name in COLUMN_NAMES]
        text += ["", _spread(row.scores.get(f"{split}/neighbor_recall", nothing), 2)]
    return [*text, "", ""]


def _spread(spread: SeedStats, digits: int = 4) -> str:
    if np.isnan(spread.mean):
        return ABSENT
    deviation = "" if np.isnan(spread.deviation) else f" ± {spread.deviation:.{digits}f}"
    return f"{spread.mean:.{digits}f}{deviation}"


def _difference(difference: MeanDifference | None) -> str:
    if difference is None:
        return ""
    interval = "" if np.isnan(difference.low) else f" ({difference.low:+.4f} to {difference.high:+.4f})"
    return f"{difference.mean:+.4f}{interval}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of texts as they stand, numbers to the right."""
    shown = [[plain(cell) for cell in row] for row in (header, *rows)]
    lines = [shown[0], ["---", *["---:"] * (len(header) - 1)], *shown[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(tables: Sequence[AblationTable], notes: Sequence[str]) -> str:
    """The tables with what must be said of them."""
    parts = []
    for table in tables:
        parts.append(f"## {plain(table.title)}")
        if table.notice:
            parts.append(f"**{plain(table.notice)}**")
        parts.append(markdown_table(columns(), cells(table)))
        parts.append("### What search keeps")
        parts.append(markdown_table(*search_table.as_text(search_table.rows_from_table(table), EVALUATED_SPLITS)))
        parts.extend(map(plain, table.notes))
    return "\n\n".join([*parts, *map(plain, notes), STATISTICS, search_table.EXPLANATION]) + "\n"


def to_dataframe(tables: Sequence[AblationTable]) -> pd.DataFrame:
    """Every table as numbers in one frame, a row a row, with the runs behind it."""
    found = []
    for table in tables:
        shared = {"data": table.title, "dataset_digest": table.kind.dataset_digest}
        for row in table.rows:
            values: dict[str, object] = shared | {"model": row.name, "best": row.best, "bytes": row.bytes}
            values |= {name: getattr(row.recipe, name) for name in ("alpha", "dim", "epochs", "batch_size", "lr")}
            values["seeds"] = len(row.runs)
            values |= _spreads(row.scores)
            for split, gain in row.gains.items():
                ends = {"": gain.mean, "_low": gain.low, "_high": gain.high}
                values |= {f"{split}/spearman_gain{end}": value for end, value in ends.items()}
            values["runs"] = " ".join(run.run_id for run in row.runs)
            found.append(values)
        found += [
            {**shared, "model": row.name, "best": False, "bytes": row.bytes, "dim": row.dim, **_spreads(row.scores)}
            for row in table.baselines
        ]
    whole = ("bytes", "dim", "epochs", "batch_size", "seeds")
    return pd.DataFrame(found).astype(dict.fromkeys(whole, "Int64"))  # baselines leave gaps, which would make floats


def _spreads(scores: Mapping[str, SeedStats]) -> dict[str, float]:
    values = {}
    for name, spread in scores.items():
        values[name] = spread.mean
        values[f"{name}_sd"] = spread.deviation
    return values


def latex(tables: Sequence[AblationTable]) -> str:
    """Two tabulars a table and split, scores and search, for documents that load booktabs."""
    parts = ["% Needs \\usepackage{booktabs}."]
    for table in tables:
        search = search_table.rows_from_table(table)
        title = escape_control_chars(table.title)  # a line's end would end the comment
        for split in EVALUATED_SPLITS:
            text = _tabular(columns([split]), cells(table, [split]), split)
            parts.append(f"% {title}: {split}\n{text}")
            text = _tabular(*search_table.as_text(search, [split]), split)
            parts.append(f"% {title}: {split}, what search keeps\n{text}")
    return "\n".join(parts)


def _tabular(header: Sequence[str], rows: Sequence[Sequence[str]], split: str) -> str:
    shown = [[escape_control_chars(cell) for cell in row] for row in rows]
    frame = pd.DataFrame(shown, columns=[name.removeprefix(f"{split} ") for name in header])
    text = frame.to_latex(index=False, escape=True, column_format="l" + "r" * (frame.shape[1] - 1))
    return str(text).replace("±", "$\\pm$")


def picture(table: AblationTable) -> Figure:
    """The table as a figure, a part a split."""
    parts = [
        ([name.removeprefix(f"{split} ") for name in columns([split])], cells(table, [split]))
        for split in EVALUATED_SPLITS
    ]
    texts = [[header, *rows] for header, rows in parts]
    widths = [max(len(line[i]) for part in texts for line in part) + 2 for i in range(len(texts[0][0]))]
    lines = len(texts[0]) + 2
    figure = Figure(figsize=(sum(widths) * 0.072, 0.22 * lines * len(parts)), dpi=150)
    for i, (split, (header, rows)) in enumerate(zip(EVALUATED_SPLITS, parts, strict=True)):
        axes = figure.add_subplot(len(parts), 1, i + 1)
        axes.axis("off")
        axes.set_title(f"{escape_mathtext(table.title)}: {split}", fontsize=8, loc="left", y=1 - 1 / lines)
        drawn = axes.table(
            cellText=[[escape_mathtext(cell) for cell in row] for row in rows],
            colLabels=header,
            colWidths=[width / sum(widths) for width in widths],
            cellLoc="right",
            bbox=Bbox.from_bounds(0, 0, 1, 1 - 1.4 / lines),
            edges="horizontal",
        )
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(7)
        for (row, column), cell in drawn.get_celld().items():
            cell.set_linewidth(0.4)
            if column == 0:
                cell.get_text().set_horizontalalignment("left")
            if row == 0 or (row <= len(table.rows) and table.rows[row - 1].best):
                cell.get_text().set_fontweight("bold")
    figure.subplots_adjust(left=0.01, right=0.99, top=1, bottom=0.01, hspace=0.02)
    return figure


def render_html(sections: Sequence[Section], notes: Sequence[str], made: str) -> str:
    """An HTML page that needs no other file.

    Args:
        sections: The tables with their figures.
        notes: What was left out, and why.
        made: When, and from what.
    """
    template = Environment(autoescape=True).from_string(
        files("twinsqueeze.reporting").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        sections=[
            {
                "table": section.table,
                "header": columns(),
                "search": _search(section.table),
                "rows": list(zip(cells(section.table), _links(section.table), strict=True)),
                "pictures": [
                    {"caption": shown.caption, "name": shown.name, "source": _inline(shown.figure)}
                    for shown in section.illustrations
                ],
            }
            for section in sections
        ],
        notes=notes,
        made=made,
        statistics=STATISTICS,
        search_explanation=search_table.EXPLANATION,
    )


def _search(table: AblationTable) -> dict[str, object]:
    """The table of search: its header, and its rows as text with whether they are ours."""
    rows = search_table.rows_from_table(table)
    header, shown = search_table.as_text(rows, EVALUATED_SPLITS)
    return {"header": header, "rows": [(text, row.ours) for text, row in zip(shown, rows, strict=True)]}


def _links(table: AblationTable) -> list[list[tuple[int, str]]]:
    """For each row of `cells` its seeds and where their runs are looked at."""
    return [[(run.recipe.seed, run.link) for run in row.runs] for row in table.rows] + [
        [] for _ in table.plain_baselines
    ]


def _inline(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
