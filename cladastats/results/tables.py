"""Tables of finished cells as text, Markdown, LaTeX and HTML, by pandas' own writers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

import pandas as pd

TEXT_STYLES = {"text": "simple", "markdown": "pipe"}
"""Formats of `plain_table`, and the styles of tabulate that pandas writes them in."""


def plain_table(
    cells: pd.DataFrame, fmt: str, align: Sequence[str], *, index: bool, widths: Sequence[int | None] | None = None
) -> str:
    """Cells as text or Markdown.

    Args:
        cells: Finished text: "(1.20)" and "1,200" are not numbers to be formatted again.
        fmt: A key of `TEXT_STYLES`.
        align: "left" or "right" of each column, the index first where it is shown.
        index: Whether the rows' labels are shown.
        widths: Characters of each column above which a cell of text goes on in the next line; Markdown cannot.
    """
    style = {"tablefmt": TEXT_STYLES[fmt], "colalign": align, "maxcolwidths": widths if fmt == "text" else None}
    return str(cells.to_markdown(index=index, disable_numparse=True, **style))


def latex_table(cells: pd.DataFrame, caption: Sequence[str], align: Sequence[str], *, index: bool) -> str:
    """Cells as a LaTeX table; it needs the package booktabs.

    Args:
        cells: Finished text. Numbers get a minus sign where a hyphen would be set as one.
        caption: Sentences without their full stops.
        align: As in `plain_table`.
        index: Whether the rows' labels are shown.
    """
    style = cells.map(_latex_cell).style.format_index(escape="latex", axis=1)
    style = style.format_index(escape="latex", axis=0) if index else style.hide(axis="index")
    return style.to_latex(
        hrules=True,
        column_format="".join(side[0] for side in align),
        position_float="centering",
        caption=" ".join(f"{latex_text(sentence)}." for sentence in caption),
    )


def html_table(cells: pd.DataFrame, caption: Sequence[str], name: str, *, index: bool) -> str:
    """Cells as an HTML table.

    Args:
        cells: Finished text.
        caption: Lines above the table.
        name: Fixes the ids of cells; without it every rendering of the same table would differ.
        index: Whether the rows' labels are shown.
    """
    style = cells.style.format(escape="html").format_index(escape="html", axis=1)
    style = style.format_index(escape="html", axis=0) if index else style.hide(axis="index")
    return style.set_uuid(name).set_caption("<br>".join(escape(line) for line in caption)).to_html()


def number_text(value: float) -> str:
    """Four decimals, or three significant digits where these would hide the value."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def latex_text(text: str) -> str:
    """Text whose special characters LaTeX sets as they are."""
    return re.sub(r"[_%&#${}~^\\<>|²]", lambda found: _LATEX.get(found[0], "\\" + found[0]), text)


_LATEX = {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "²": "$^2$",  # older formats of LaTeX have no letter for it
    **{sign: f"${sign}$" for sign in "<>|"},  # in text, old fonts have other signs in these places
}

_NUMBER = re.compile(r"[(]?-[\d.,e+-]+[)]?|[\d.]+e-\d+|(-?[\d.e+-]+ )?\[[\d.,e+ -]+\]")


def _latex_cell(cell: str) -> str:
    return cell.replace("-", "$-$") if _NUMBER.fullmatch(cell) else latex_text(cell)
