"""Sensitivity as a page: a row per layer, a column per level, coloured by the accuracy that is lost. Pure."""

from __future__ import annotations

from html import escape

from edgepress_host import units
from edgepress_host.sensitivity import Cell, Sensitivity

_ROW, _COLUMN, _LETTER, _TOP = 24, 92, 7.2, 30
_WORST = 0.1
"""Lost accuracy that is drawn in the full colour; more looks the same."""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }}
svg {{ max-width: 100%; height: auto; }} text {{ font: 12px system-ui, sans-serif; fill: #222; }}
</style>
<h1>{title}</h1>
<p>{text}</p>
{plot}
</html>
"""


def page(found: Sensitivity) -> str:
    """Return a page that needs no network."""
    title = f"Sensitivity of {found.model} to {found.sweep.technique}"
    text = (
        f"{found.metric} on {found.samples:,} samples of validate, in the runtime of {found.format}: "
        f"{units.score(found.accuracy)} for the original. Each cell changes one layer alone "
        f"({found.sweep.option} as the column says) and shows what remains; the darker, the more is lost. "
        "Blank: the step could not be done."
    )
    return _PAGE.format(title=escape(title), text=escape(text), plot=plot(found))


def plot(found: Sensitivity) -> str:
    """Draw the cells as SVG text."""
    left = 16 + _LETTER * max(len(layer) for layer in found.layers)
    width = left + _COLUMN * len(found.sweep.levels) + 8
    height = _TOP + _ROW * len(found.layers) + 8
    parts = [f'<svg viewBox="0 0 {width:.0f} {height}" role="img" aria-label="accuracy by layer and level">']
    for column, level in enumerate(found.sweep.levels):
        x = left + _COLUMN * (column + 0.5)
        parts.append(f'<text x="{x:.1f}" y="20" text-anchor="middle">{escape(found.sweep.option)} {level:g}</text>')
    for row, layer in enumerate(found.layers):
        y = _TOP + _ROW * row
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 16}" text-anchor="end">{escape(layer)}</text>')
        parts += [_mark(cell, left + _COLUMN * column, y) for column, cell in enumerate(found.row(layer))]
    return "\n".join([*parts, "</svg>"])


def _mark(cell: Cell, x: float, y: float) -> str:
    if cell.accuracy is None or cell.drop is None:
        box = f'<rect x="{x:.1f}" y="{y}" width="{_COLUMN - 3}" height="{_ROW - 3}" fill="none" stroke="#ccc"/>'
        return f"<g><title>{escape(cell.reason)}</title>{box}</g>"
    share = min(1.0, max(0.0, cell.drop / _WORST))
    box = (
        f'<rect x="{x:.1f}" y="{y}" width="{_COLUMN - 3}" height="{_ROW - 3}" fill="#c0392b" '
        f'fill-opacity="{share:.2f}" stroke="#ddd"/>'
    )
    text = f'<text x="{x + _COLUMN / 2 - 1:.1f}" y="{y + 16}" text-anchor="middle">{units.score(cell.accuracy)}</text>'
    return f"<g><title>{cell.drop:+.4f} lost</title>{box}{text}</g>"
