"""Line charts, drawn with matplotlib, which the extra `bench` installs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer


def lines(
    file: Path, panels: Sequence[tuple[str, str, str, Mapping[str, Mapping[int, float]]]]
) -> None:
    """Write panels side by side, as the kind of picture that the file's name says.

    ``panels``: title, what the axes show, and by line its values.
    """
    try:
        import matplotlib  # noqa: PLC0415 - in an extra of its own
    except ImportError:
        raise typer.BadParameter(
            "A chart needs matplotlib: pip install -c constraints.txt -e '.[bench]'"
        ) from None
    matplotlib.use("agg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "far-mesh", "svg.fonttype": "none"})
    from matplotlib import pyplot  # noqa: PLC0415
    from matplotlib.ticker import NullLocator, ScalarFormatter  # noqa: PLC0415

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 3.5))
    for axis, (title, along, up, series) in zip(axes, panels, strict=True):
        for name, values in series.items():
            axis.plot([*values], [*values.values()], marker="o", label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({place for values in series.values() for place in values}))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(bottom=0)
        axis.set(title=title, xlabel=along, ylabel=up)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
