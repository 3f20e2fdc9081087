"""The page: values into the template, every text escaped by it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gakd.report.charts import COLORS, dashes
from gakd.report.data_table import data_rows
from gakd.report.figures import charts
from gakd.report.game import healths
from gakd.report.groups import Group
from gakd.report.samples import samples
from gakd.report.tables import objective_rows, run_rows, scores, setting_rows


def _breakable(title: str) -> Markup:
    """A title or a setting's name that may wrap behind its bars, underscores and dots."""
    return Markup("<wbr>").join(re.split(r"(?<=[‖_.])", title))


def html(groups: Sequence[Group], warnings: Sequence[str], completions: int, beside: Path) -> str:
    """The whole document; nothing in it is fetched from anywhere. It is written into the folder `beside`."""
    environment = Environment(
        loader=PackageLoader("gakd.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "color": lambda index: f"var(--line-{index % COLORS})",
        "dashes": dashes,
        "breakable": _breakable,
    }
    measures, score_rows = scores(groups)
    document = environment.get_template("page.html").render(
        style=Markup(files("gakd.report").joinpath("page.css").read_text(encoding="utf-8")),
        groups=groups,
        runs=sum(len(group.runs) for group in groups),
        warnings=warnings,
        measures=measures,
        score_rows=score_rows,
        validation=charts(groups, "validation"),
        training=charts(groups, "training"),
        game=charts(groups, "game"),
        healths=healths(groups),
        samples=samples(groups, completions),
        settings=setting_rows(groups),
        objectives=objective_rows(groups),
        run_rows=run_rows(groups, beside),
        data_rows=data_rows(groups),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    # A file name or a setting may hold half of a character pair, which no file can.
    return document.encode("utf-8", "replace").decode("utf-8")
