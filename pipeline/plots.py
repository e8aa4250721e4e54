"""The report's plots, as SVG text that is the same for the same figures. Builds differ by colour and by shape."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
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
COLOURS = ("#0b5cad", "#b3410b", "#1c7a3e", "#7a2e8e", "#5c5c00", "#8a1c4a")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LEAST = 1e-8  # what an error of nothing is drawn at on a log axis
_ERROR = "1 - cosine with the original"


def _styles() -> Iterator[dict[str, Any]]:
    for number in itertools.count():
        yield {
            "color": COLOURS[number % len(COLOURS)],
            "linestyle": _LINES[number % len(_LINES)],
            "marker": _MARKERS[number % len(_MARKERS)],
        }


def _start(height: float = 3.6) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(5.4, height))
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _svg(figure: Figure, builds: int, below: float = 0.18) -> str:
    """With the legend below the plot, where it covers no point and needs no width on a phone."""
    if builds:
        figure.axes[0].legend(
            loc="upper left",
            bbox_to_anchor=(-0.1, -below),
            fontsize=9,
            frameon=False,
            ncols=2,
        )
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def parity(texts: Mapping[str, Sequence[float]]) -> str:
    """Error of every text, sorted, one line a build, on a log axis."""
    figure, axes = _start()
    for style, (name, cosines) in zip(_styles(), texts.items(), strict=False):
        errors = sorted(max(1 - c, _LEAST) for c in cosines)
        share = [100 * (i + 1) / len(errors) for i in range(len(errors))]
        axes.plot(errors, share, label=name, **style | {"marker": ""})
    axes.set(xscale="log", xlabel=_ERROR, ylabel="share of texts (%)", ylim=(0, 100))
    return _svg(figure, len(texts))


def quality_per_byte(rows: Rows) -> str:
    """Worst error of each build against its size."""
    figure, axes = _start()
    for style, row in zip(_styles(), rows, strict=False):
        x, y = row["bytes"] / 2**20, max(1 - row["min_cosine"], _LEAST)
        axes.plot([x], [y], label=row["build"], **style | {"linestyle": ""}, markersize=9)
    axes.set(yscale="log", xlabel="size (MiB)", ylabel=f"{_ERROR}, worst text")
    axes.margins(x=0.1, y=0.2)
    return _svg(figure, len(rows))


def by_length(texts: Mapping[str, Rows]) -> str:
    """Error by number of tokens, one point a text."""
    figure, axes = _start()
    for style, (name, rows) in zip(_styles(), texts.items(), strict=False):
        errors = [max(1 - r["cosine"], _LEAST) for r in rows]
        axes.plot([r["tokens"] for r in rows], errors, label=name, **style | {"linestyle": ""}, markersize=3)
    axes.set(xscale="log", yscale="log", xlabel="tokens of the text", ylabel=_ERROR)
    return _svg(figure, len(texts))


def drift(layers: Mapping[str, Rows]) -> str:
    """Relative error of the hidden states after each layer."""
    figure, axes = _start()
    names: list[str] = []
    for style, (name, rows) in zip(_styles(), layers.items(), strict=False):
        names = max(names, [r["layer"].removeprefix("layer ") for r in rows], key=len)
        axes.plot(range(len(rows)), [max(r["error"], 1e-6) for r in rows], label=name, **style, markersize=4)
    every = max(len(names) // 12, 1)
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=45, ha="right", fontsize=9)
    axes.set(yscale="log", xlabel="state after", ylabel="relative error, worst token")
    return _svg(figure, len(layers), 0.36)


def range_use(layers: Mapping[str, Rows]) -> str:
    """Largest magnitude in each layer as a share of FP16's largest number."""
    figure, axes = _start()
    names: list[str] = []
    for style, (name, rows) in zip(_styles(), layers.items(), strict=False):
        names = max(names, [r["layer"].removeprefix("layer ") for r in rows], key=len)
        used = [max(100 * r["range_used"], 1e-3) for r in rows]
        axes.plot(range(len(rows)), used, label=name, **style, markersize=4)
    axes.axhline(100, color="#a40000", linewidth=1)
    every = max(len(names) // 12, 1)
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=45, ha="right", fontsize=9)
    axes.set(yscale="log", xlabel="layer", ylabel="of FP16's range (%)")
    return _svg(figure, len(layers), 0.36)


def quality(rows: Rows) -> str:
    """What each build loses of nDCG@10, with its interval."""
    known = [r for r in rows if r.get("ndcg10_drop") is not None]
    figure, axes = _start(1.6 + 0.4 * len(known))
    for place, (style, row) in enumerate(zip(_styles(), known, strict=False)):
        middle, low, high = (row[f"ndcg10_drop{end}"] for end in ("", "_low", "_high"))
        axes.plot([low, high], [place, place], color=style["color"], linewidth=2)
        axes.plot([middle], [place], color=style["color"], marker=style["marker"], markersize=8)
    axes.axvline(0, color="#333333", linewidth=1)
    axes.set_yticks(range(len(known)), [r["build"] for r in known])
    axes.set(xlabel="loss of nDCG@10 against the original (0: none), 95 % interval")
    axes.margins(y=0.2)
    axes.invert_yaxis()
    return _svg(figure, 0)
