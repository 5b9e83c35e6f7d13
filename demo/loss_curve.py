"""The loss while the demo model trains, as a table of values and as a chart."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measurement:
    """Losses in nats a token: mean of training since the measurement before, and validation."""

    step: int
    train_loss: float
    validation_loss: float


def write_curve(history: list[Measurement], folder: Path) -> None:
    """Write `loss.csv` and `loss.svg` to the folder."""
    with (folder / "loss.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "train_loss", "validation_loss"])
        writer.writerows(
            [m.step, f"{m.train_loss:.4f}", f"{m.validation_loss:.4f}"] for m in history
        )
    (folder / "loss.svg").write_text(curve_svg(history))


def curve_svg(history: list[Measurement]) -> str:
    """A line chart of both losses. Two lines and labels need no plotting library."""
    width, height, left, bottom = 640, 320, 40, 30
    steps = history[-1].step
    top = math.ceil(max(max(m.train_loss, m.validation_loss) for m in history))

    def x(step: int) -> float:
        return left + (width - left - 10) * step / steps

    def y(loss: float) -> float:
        return (height - bottom) * (1 - loss / top) + 10 * loss / top

    def line(colour: str, values: list[float]) -> str:
        points = " ".join(
            f"{x(m.step):.1f},{y(v):.1f}" for m, v in zip(history, values, strict=True)
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'

    grid = "".join(
        f'<path d="M{left} {y(loss):.1f}H{width - 10}" stroke="#ddd"/>'
        f'<text x="{left - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss}</text>'
        for loss in range(top + 1)
    )
    ticks = "".join(
        f'<text x="{x(s):.1f}" y="{height - 10}" text-anchor="middle">{s}</text>'
        for s in range(0, steps + 1, max(1, steps // 500 * 100))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f"{grid}{ticks}{line('#1668c1', [m.train_loss for m in history])}"
        f"{line('#d9480f', [m.validation_loss for m in history])}"
        f'<text x="{width - 150}" y="30" fill="#1668c1">training loss</text>'
        f'<text x="{width - 150}" y="48" fill="#d9480f">validation loss</text></svg>\n'
    )
