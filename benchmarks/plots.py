"""Pictures of the curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Points = Mapping[str, list[float]]
"""Values by way of doing the work."""
COLOURS = {"ours": "#1f6f8b", "plain sqlite3": "#b0413e", "SQLAlchemy ORM": "#8a8a8a"}


def draw(path: str, title: str, x: tuple[str, list[int]], y: str, points: Points) -> None:
    """Draw an SVG of *points* over the values of *x*; both axes are logarithmic."""
    import matplotlib as mpl  # noqa: PLC0415 - of the extra `bench`

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "registry", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt  # noqa: PLC0415
    from matplotlib import ticker  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    drawn: Any = axes
    for way, values in points.items():
        drawn.plot(x[1], values, marker="o", markersize=4, label=way, color=COLOURS[way])
    drawn.set(title=title, xlabel=x[0], ylabel=y, xscale="log", yscale="log")
    drawn.set_xticks(x[1], labels=[f"{each:,}" for each in x[1]])
    drawn.xaxis.set_minor_locator(ticker.NullLocator())
    plainly = ticker.FuncFormatter(lambda value, _: f"{value:,g}")
    drawn.yaxis.set_major_formatter(plainly)
    drawn.yaxis.set_minor_formatter(plainly)
    drawn.grid(visible=True, which="major", alpha=0.3)
    drawn.legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
