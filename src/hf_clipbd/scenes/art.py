# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""From a drawing's text to the two masks an object is painted with: its tones and its silhouette.

A drawing is a list of parts divided by `;`, painted one over the other on a square of 100 by 100 (y goes down). A part
is a tone, a kind and numbers:

- tones: `b` the object's own colour, `d` a darker and `l` a lighter shade of it, `k` black, `w` white, `x` a hole;
- kinds: `P x,y ...` polygon, `S x,y ...` smooth closed curve, `E cx cy rx ry` ellipse, `O width cx cy rx ry` ring,
  `R x0 y0 x1 y1` rectangle, `L width x,y ...` line, `C width x,y ...` smooth open curve.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .drawings_nature import NATURE
from .drawings_things import THINGS


DRAWINGS: dict[str, str] = {**NATURE, **THINGS}
TONES = {"k": 12, "d": 112, "b": 160, "l": 208, "w": 250}
OUTLINE_TONE = 56
ART = 256  # side of the finest masks, pixels
MARGIN = 16  # empty border of the finest masks, for the outline and for interpolation
_DRAW = 512  # side of the sheet a drawing is put on before it is cropped


def _smooth(points: list[tuple[float, float]], closed: bool, steps: int = 8) -> list[tuple[float, float]]:
    """Return points along the Catmull-Rom curve through `points`."""
    knots = np.asarray(points, dtype=float)
    knots = np.vstack([knots[-1:], knots, knots[:2]]) if closed else np.vstack([knots[:1], knots, knots[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    p0, p1, p2, p3 = knots[:-3, None], knots[1:-2, None], knots[2:-1, None], knots[3:, None]
    curve = 0.5 * (
        2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    curve = curve.reshape(-1, 2)  # (segments * steps, 2)
    return [tuple(point) for point in (curve if closed else np.vstack([curve, knots[-1:]]))]


def _stroke(pen: ImageDraw.ImageDraw, points: list[tuple[float, float]], width: float, fill: int) -> None:
    pen.line(points, fill=fill, width=round(width), joint="curve")
    for x, y in (points[0], points[-1]):
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=fill)


def _paint(pen: ImageDraw.ImageDraw, kind: str, words: list[str], scale: float, fill: int) -> None:
    points = [tuple(float(v) * scale + scale * 10 for v in word.split(",")) for word in words if "," in word]
    numbers = [float(word) * scale for word in words if "," not in word]
    if kind == "P":
        pen.polygon(points, fill=fill)
    elif kind == "S":
        pen.polygon(_smooth(points, closed=True), fill=fill)
    elif kind == "L":
        _stroke(pen, points, numbers[0], fill)
    elif kind == "C":
        _stroke(pen, _smooth(points, closed=False), numbers[0], fill)
    elif kind == "R":
        pen.rectangle([v + scale * 10 for v in numbers], fill=fill)
    elif kind in ("E", "O"):
        *width, cx, cy, rx, ry = numbers
        cx, cy = cx + scale * 10, cy + scale * 10
        box = (cx - rx, cy - ry, cx + rx, cy + ry)
        if kind == "E":
            pen.ellipse(box, fill=fill)
        else:
            pen.ellipse(box, outline=fill, width=round(width[0]))
    else:
        raise ValueError(f"Expected a part of kind P, S, E, O, R, L or C, but got `{kind}`.")


def draw(drawing: str) -> tuple[Image.Image, Image.Image]:
    """Return the tones and the silhouette of a drawing, two `L` images of `ART` by `ART` pixels, filled to the margin.

    Args:
        drawing: Text as this module's docstring describes.

    Returns:
        Tones (0 black ... 255 white, 160 the object's own colour) and coverage (255 inside, 0 outside); the
        silhouette is a little wider than what is drawn, which gives the object a dark outline.

    Raises:
        ValueError: If a part has an unknown kind.
    """
    scale = _DRAW / 120  # ten units of room around the square
    sheets = [Image.new("L", (_DRAW, _DRAW), OUTLINE_TONE), Image.new("L", (_DRAW, _DRAW), 0)]
    pens = [ImageDraw.Draw(sheet) for sheet in sheets]
    for part in drawing.split(";"):
        head, *words = part.split()
        hole = head[0] == "x"
        _paint(pens[0], head[1], words, scale, OUTLINE_TONE if hole else TONES[head[0]])
        _paint(pens[1], head[1], words, scale, 0 if hole else 255)
    left, top, right, bottom = sheets[1].getbbox()
    half = max(right - left, bottom - top) / 2
    cx, cy = (left + right) / 2, (top + bottom) / 2
    inner = ART - 2 * MARGIN
    box = (cx - half, cy - half, cx + half, cy + half)
    masks = []
    for sheet, empty in zip(sheets, (OUTLINE_TONE, 0), strict=True):
        mask = Image.new("L", (ART, ART), empty)
        square = sheet.transform(
            (2 * inner, 2 * inner), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR, fillcolor=empty
        )
        mask.paste(square.resize((inner, inner), Image.Resampling.BOX), (MARGIN, MARGIN))
        masks.append(mask)
    return masks[0], masks[1].filter(ImageFilter.MaxFilter(11))


@cache
def masks(name: str, level: int = 0) -> tuple[Image.Image, Image.Image]:
    """Return tones and silhouette of class `name`, `ART / 2**level` pixels wide, kept in memory after the first call.

    Raises:
        ValueError: If `name` is not a class of the embedded world.
    """
    if name not in DRAWINGS:
        raise ValueError(f"Expected a class of the embedded world, but got `{name}`. `CLASS_NAMES` lists them.")
    if level == 0:
        return draw(DRAWINGS[name])
    tones, silhouette = masks(name, 0)
    return tones.reduce(2**level), silhouette.reduce(2**level)
