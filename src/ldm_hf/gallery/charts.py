"""Plots of the gallery's pages: SVG that follows the colours of the page."""

import html
from collections.abc import Sequence

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 230, 64, 28, 20


def curve(xs: Sequence[float], ys: Sequence[float], lines: Sequence[tuple[str, float]], label: str) -> str:
    """A learning curve with horizontal lines that say what its heights mean.

    Args:
        xs: transitions, of shape (N,), rising.
        ys: mean returns, of shape (N,).
        lines: names and heights.
        label: what a reader who cannot see it is told.
    """
    heights = [*ys, *(value for _, value in lines)]
    low, high = min(heights), max(heights)
    span, last = (high - low) or 1.0, max(xs[-1], 1)

    def across(value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - 8) * value / last, 1)

    def up(value: float) -> float:
        return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / span, 1)

    points = " ".join(f"{across(x)},{up(y)}" for x, y in zip(xs, ys, strict=True))
    marks = "".join(
        f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{up(value)}" y2="{up(value)}"/>'
        f'<text x="{_WIDTH - 8}" y="{max(up(value) - 4, 12)}" text-anchor="end">{html.escape(name)}</text>'
        for name, value in lines
    )
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(label)}">{marks}'
        f'<polyline points="{points}"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 8}" text-anchor="end">{high:.4g}</text>'
        f'<text x="{_LEFT - 6}" y="{_HEIGHT - _BOTTOM}" text-anchor="end">{low:.4g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">0</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 8}" text-anchor="end">{last:,.0f} transitions</text></svg>'
    )
