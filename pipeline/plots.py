"""The report's plots, as SVG text that is the same for the same figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update(
    {"svg.hashsalt": "corembed", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}
)

from matplotlib import pyplot as plt  # noqa: E402  # after the backend is chosen
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

Rows = Sequence[Mapping[str, Any]]
_COLOURS = ("#0b5cad", "#b3410b", "#1c7a3e", "#7a2e8e", "#5c5c00")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _legend(axes: Axes) -> None:
    """Beside the plot, where it covers no point."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=9, borderaxespad=0)


def parity(texts: Mapping[str, Sequence[float]]) -> str:
    """Error (1 - cosine) of every text, sorted, one line a build, on a log axis."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for colour, (name, cosines) in zip(_COLOURS * 9, texts.items(), strict=False):
        errors = sorted(max(1 - c, 1e-8) for c in cosines)
        share = [100 * (i + 1) / len(errors) for i in range(len(errors))]
        axes.plot(errors, share, label=name, color=colour)
    axes.set(
        xscale="log",
        xlabel="1 - cosine with the original (smaller is better)",
        ylabel="share of texts (%)",
        ylim=(0, 100),
    )
    axes.grid(visible=True, alpha=0.3)
    _legend(axes)
    return _svg(figure)


def quality_per_byte(rows: Rows) -> str:
    """Worst error of each build against its size."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for colour, row in zip(_COLOURS * 9, rows, strict=False):
        x, y = row["bytes"] / 2**20, max(1 - row["min_cosine"], 1e-8)
        axes.plot([x], [y], "o", color=colour, markersize=9, label=row["build"])
    axes.set(yscale="log", xlabel="size (MiB)", ylabel="1 - cosine, worst text")
    axes.margins(x=0.1, y=0.2)
    axes.grid(visible=True, alpha=0.3)
    _legend(axes)
    return _svg(figure)


def by_group(texts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Worst error by number of tokens, one point a text."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for colour, (name, rows) in zip(_COLOURS * 9, texts.items(), strict=False):
        axes.plot(
            [r["tokens"] for r in rows],
            [max(1 - r["cosine"], 1e-8) for r in rows],
            ".",
            color=colour,
            label=name,
            markersize=4,
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens of the text", ylabel="1 - cosine")
    axes.grid(visible=True, alpha=0.3)
    _legend(axes)
    return _svg(figure)
