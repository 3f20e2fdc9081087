"""Curves of groups as inline SVG whose colours are the page's, so that one drawing serves light, dark and paper."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from gakd.evaluation.plots import Panel
from gakd.report.groups import Curve

COLORS = 8  # of lines: --line-0 to --line-7 in page.css
DASHES = ("", "5 2", "1.5 1.5", "6 2 1.5 2")  # of lines, so that they differ without colour and after COLORS
_SVG = "http://www.w3.org/2000/svg"
# Colours that nothing else has, replaced by the page's in the drawing.
_INK, _GRID = "#a1b2c1", "#a1b2c2"
_LINES = tuple(f"#d3e4{index:02x}" for index in range(COLORS))


class Line(NamedTuple):
    place: int  # of its group: colour and dashes
    curve: Curve


def dashes(index: int) -> str:
    """An SVG dash pattern."""
    return DASHES[index % len(DASHES)]


def line_chart(panel: Panel, lines: Sequence[Line], markers: bool, key: str, alt: str) -> str:
    """An `<svg>` element, without title and legend: those are the page's. `key` is unique in the page."""
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 9.5, "axes.edgecolor": _GRID}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.4, 2.5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for line in lines:
            color, pattern = _LINES[line.place % COLORS], [float(n) for n in dashes(line.place).split()]
            steps, mean, low, high, seeds, _ = line.curve
            if seeds > 1:
                axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0, zorder=2)
            (drawn,) = axes.plot(steps, mean, color=color, linewidth=1.5, zorder=3)
            if pattern:
                drawn.set_dashes(pattern)
            if markers or len(steps) == 1:  # a line through one point shows nothing
                axes.plot(steps, mean, color=color, linewidth=0, marker="o", markersize=3.6, zorder=4)
        if panel.line is not None:
            axes.axhline(panel.line[0], color=_INK, linewidth=0.8, dashes=(3, 3), zorder=1)
        if panel.limits is not None:
            axes.set_ylim(*panel.limits)
        if panel.log and all(low > 0 for line in lines for low in line.curve.low):
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))  # without a factor above the axis
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("optimizer step", color=_INK)
        axes.set_ylabel(panel.unit, color=_INK)
        axes.tick_params(which="both", color=_GRID, labelcolor=_INK)
        axes.grid(True, color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.02)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inlined(buffer.getvalue(), key, alt)


def _inlined(drawing: str, key: str, alt: str) -> str:
    """A drawing as an element of a page: its own ids, the page's colours and font, no metadata, no global style."""
    for sentinel, variable in {_INK: "--ink-soft", _GRID: "--rule"}.items():
        drawing = drawing.replace(sentinel, f"var({variable})")
    for index, sentinel in enumerate(_LINES):
        drawing = drawing.replace(sentinel, f"var(--line-{index})")
    drawing = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", drawing)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(drawing)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}metadata" or child.tag == f"{{{_SVG}}}style":
                parent.remove(child)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", drawing))
    for element in root.iter():
        if (name := element.get("id")) is not None:
            del element.attrib["id"]
            if name in used:
                element.set("id", f"{key}-{name}")
        for attribute, value in element.attrib.items():
            element.set(attribute, re.sub(r"(url\(#|^#)", rf"\g<1>{key}-", value) if "#" in value else value)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ElementTree.tostring(root, encoding="unicode")
