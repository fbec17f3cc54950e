# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""From a scene to pixels, at any size: background, objects with their textures from back to front, rendering style."""

from functools import cache
from math import cos, pi, radians, sin

import numpy as np
from PIL import Image

from .art import ART, MARGIN, TONES, masks
from .graph import Scene, SceneObject
from .words import COLORS


STYLES = ("default", "sketch", "night")
_INNER = ART - 2 * MARGIN
_ONLY_PALER = ("orange", "yellow", "pink", "white", "turquoise")  # darkened, these would go by another name
_ONLY_DEEPER = ("black", "brown", "gray")
_GRAIN = 64  # grid of the finest noise, the same at every picture size


@cache
def _ramp(color: str) -> np.ndarray:
    """Return the table from tone to colour, float32 (256, 3): black, the colour's shades, white."""
    base = np.asarray(COLORS[color][0], dtype=np.float32)
    stops = np.asarray([0, 56, 112, 160, 208, 250, 255])
    light, white = base + 0.5 * (255 - base), np.full_like(base, 255)
    table = np.asarray([base * 0.06, base * 0.30, base * 0.66, base, light, base * 0.03 + 247, white])
    return np.stack([np.interp(np.arange(256), stops, table[:, c]) for c in range(3)], axis=1).astype(np.float32)


@cache
def _pattern_tone(color: str) -> float:
    """Return the tone of stripes and dots: near white on deep colours, dark on pale ones."""
    red, green, blue = COLORS[color][0]
    return 240.0 if 0.3 * red + 0.59 * green + 0.11 * blue < 165 else 84.0


def _pattern(texture: str, side: int, size: int, phase: tuple[float, float], angle: float) -> np.ndarray:
    """Return where the texture's second tone lies, float32 (side, side) in [0, 1], scaled with the picture."""
    axis = np.arange(side, dtype=np.float32) / size
    c, s = cos(angle), sin(angle)
    if texture == "striped":
        wave = np.sin((axis[None, :] * c + axis[:, None] * s) * (2 * pi / 0.11) + phase[0])
        return np.clip(2.5 * wave + 0.3, 0, 1)
    along = (axis[None, :] * c + axis[:, None] * s) * (2 * pi / 0.12) + phase[0]
    across = (axis[:, None] * c - axis[None, :] * s) * (2 * pi / 0.12) + phase[1]
    return np.clip(2.5 * (np.cos(along) + np.cos(across)) - 1.8, 0, 1)


def _place(canvas: np.ndarray, thing: SceneObject, rng: np.random.Generator) -> None:
    """Paint one object on `canvas`, float32 (size, size, 3), in place."""
    size = canvas.shape[0]
    scale = thing.diameter * size / _INNER  # picture pixels in one pixel of the finest masks
    level = max(0, min(4, int(np.log2(0.8 / scale)))) if scale < 0.8 else 0
    tones, silhouette = masks(thing.name, level)
    turn = radians(thing.angle)
    reach = scale * ART / 2 * (abs(cos(turn)) + abs(sin(turn)))
    cx, cy = thing.x * size, thing.y * size
    left, top = max(int(cx - reach), 0), max(int(cy - reach), 0)
    right, bottom = min(int(cx + reach) + 1, size), min(int(cy + reach) + 1, size)
    side = max(right - left, bottom - top)
    zoom = 1 / (scale * 2**level)
    c, s, mirror = cos(turn) * zoom, sin(turn) * zoom, -1.0 if thing.flipped else 1.0
    middle = ART / 2 / 2**level
    dx, dy = left - cx, top - cy
    matrix = (mirror * c, mirror * s, middle + mirror * (c * dx + s * dy), -s, c, middle - s * dx + c * dy)
    shape, how, bilinear = (right - left, bottom - top), Image.Transform.AFFINE, Image.Resampling.BILINEAR
    tone = np.asarray(tones.transform(shape, how, matrix, bilinear, fillcolor=56))
    cover = np.asarray(silhouette.transform(shape, how, matrix, bilinear), dtype=np.float32)
    if thing.texture != "plain":
        phase, slant = (2 * pi * rng.random(), 2 * pi * rng.random()), rng.random() * pi
        mask = _pattern(thing.texture, side, size, phase, slant)[: shape[1], : shape[0]]
        mask = mask * ((tone > 90) & (tone < TONES["w"] - 10))
        tone = (tone + mask * (_pattern_tone(thing.color) - tone)).astype(np.uint8)
    paint = _ramp(thing.color)[tone]  # (h, w, 3)
    region = canvas[top:bottom, left:right]
    region += (paint - region) * (cover[..., None] * np.float32(1 / 255))


def _background_color(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Return a shade of the background's hue, paler or deeper, that stands out from every object as well as it can."""
    base = np.asarray(COLORS[scene.color][0], dtype=np.float32)
    things = np.asarray([COLORS[thing.color][0] for thing in scene.objects], dtype=np.float32)
    shades = []
    for depth, amount in rng.random((4, 2)).tolist():
        if scene.color in _ONLY_PALER or (depth < 0.6 and scene.color not in _ONLY_DEEPER):
            shade = base + (255 - base) * np.float32(0.65 * amount)
        else:
            shade = base * np.float32(1 - 0.35 * amount)
        shades.append(shade)
        if np.abs(things - shade).sum(axis=1).min() > 150:
            return shade
    return max(shades, key=lambda shade: float(np.abs(things - shade).sum(axis=1).min()))


def _upscale(grid: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _clutter(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Paint blobs, bars and lines over the background, in place."""
    size = canvas.shape[0]
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    soft = np.float32(size / 1.5)
    ground = canvas[0, 0].copy()
    for kind, x, y, turn, width, *tint in rng.random((3 + int(rng.random() * 4), 8)).tolist():
        c, s = cos(pi * turn), sin(pi * turn)
        along = (axis[None, :] - np.float32(x)) * np.float32(c) + (axis[:, None] - np.float32(y)) * np.float32(s)
        if kind < 0.5:
            across = (axis[:, None] - np.float32(y)) * np.float32(c) - (axis[None, :] - np.float32(x)) * np.float32(s)
            radius = np.sqrt(along * along + across * across * np.float32(1 + 2 * width))
            distance = np.float32(0.08 + 0.16 * width) - radius
        else:
            distance = np.float32(0.008 + 0.04 * width * (kind > 0.75)) - np.abs(along)
        shade = ground + (np.asarray(tint, dtype=np.float32) - 0.5) * 130
        canvas += (shade - canvas) * np.clip(distance * soft + 0.5, 0, 1)[..., None]


def _background(scene: Scene, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the background, float32 (size, size, 3)."""
    ground = _background_color(scene, rng)
    canvas = np.empty((size, size, 3), dtype=np.float32)
    canvas[:] = ground
    if scene.background == "gradient":
        turn, depth = rng.random(2)
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        slope = axis[None, :] * np.float32(cos(2 * pi * turn)) + axis[:, None] * np.float32(sin(2 * pi * turn))
        canvas *= (1 + slope * np.float32(0.4 + 0.6 * depth))[..., None]
    elif scene.background == "noisy":
        cells = (4, 8, 16, _GRAIN)[int(rng.random() * 4)]
        grid = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
        canvas += (_upscale(grid, size)[..., None] - 128) * np.float32(0.22 + 0.2 * rng.random())
    elif scene.background == "cluttered":
        _clutter(canvas, rng)
    return canvas


def _restyle(canvas: np.ndarray, style: str, rng: np.random.Generator) -> np.ndarray:
    """Return `canvas` in another domain: `sketch` is pencil lines on paper, `night` is dim and blue under a lamp."""
    size = canvas.shape[0]
    if style == "sketch":
        gray = canvas.mean(axis=2)
        step = max(1, round(size / 64))
        padded = np.pad(gray, ((0, step), (0, step)), mode="edge")
        edge = np.hypot(padded[step:, :size] - gray, padded[:size, step:] - gray)
        paper = np.asarray([250, 246, 236], dtype=np.float32)
        wash = paper + 0.30 * (0.5 * canvas + 0.5 * gray[..., None] - 255)
        return wash * (1 - np.clip(edge * np.float32(size / 64 / step / 90), 0, 0.9))[..., None]
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = 0.3 + 0.4 * rng.random(2)
    lamp = np.exp(-((axis[None, :] - np.float32(x)) ** 2 + (axis[:, None] - np.float32(y)) ** 2) * 4)
    light = 0.22 + 0.4 * lamp[..., None]
    gray = canvas.mean(axis=2, keepdims=True)
    return (0.55 * canvas + 0.45 * gray) * light * np.asarray([0.85, 0.95, 1.2], dtype=np.float32) + 6


def render_scene(scene: Scene, size: int, rng: np.random.Generator, style: str = "default") -> np.ndarray:
    """Return the picture of a scene, uint8 (size, size, 3).

    Args:
        scene: What to show.
        size: Side in pixels; the same scene at another size is the same picture, larger or smaller.
        rng: Stream 2 of the row.
        style: One of `STYLES`.
    """
    canvas = _background(scene, size, rng)
    for thing in scene.objects:
        _place(canvas, thing, rng)
    if style != "default":
        canvas = _restyle(canvas, style, rng)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
