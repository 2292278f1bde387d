"""Line charts as SVG, in as few lines as will do: several series over a common x, both axes from zero or logarithmic."""

import math
import pathlib
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 170, 40, 50
COLOURS = ["#1b6ca8", "#c8553d", "#3d8c40", "#8e5ea2", "#b8860b", "#555555"]


def _ticks(most: float) -> list[float]:
    step = 10 ** math.floor(math.log10(most))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if most / s <= 8)
    return [i * step for i in range(int(most / step) + 2)]


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:g}"


def draw(path: pathlib.Path, title: str, x_name: str, y_name: str, series: dict[str, list[tuple[float, float]]],
         log_y: bool = False) -> None:
    points = [point for line in series.values() for point in line]
    xs = _ticks(max(x for x, _ in points))
    low = min(y for _, y in points if y > 0)
    most = max(y for _, y in points)
    ys = ([10.0 ** e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(most)) + 1)] if log_y else _ticks(most))

    def at_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / xs[-1]

    def at_y(y: float) -> float:
        share = ((math.log10(max(y, ys[0])) - math.log10(ys[0])) / (math.log10(ys[-1]) - math.log10(ys[0]))
                 if log_y else y / ys[-1])
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
           f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_name)}</text>',
           f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>']
    for x in xs:
        out.append(f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_label(x)}</text>')
    for y in ys:
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{_label(y)}</text>')
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        way = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line)
        out.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>'
                   f'<text x="{at_x(line[-1][0]) + 8:.1f}" y="{at_y(line[-1][1]) + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    path.write_text("\n".join(out) + "\n</svg>\n")
