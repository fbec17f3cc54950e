# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Training pairs as views: what is drawn from each row, and how a batch is stacked.

Every draw is a pure function of (seed, epoch, row), so a resumed run, another number of workers or another number
of processes sees the same pixels and the same words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from hf_clipbd.data.canvas import Canvas
from hf_clipbd.data.row_format import names_of_columns, with_columns, without_decoding
from hf_clipbd.data.unreadable import UNREADABLE, reason


_ADVICE = (
    "Leave such rows out: `--on_error skip` (`--world.on_error skip` of a recipe), or `readable_rows` of "
    "`hf_clipbd.data.reader`."
)
_LOOKED_AT = 1000

ImageView = Callable[[PIL.Image.Image, tuple[int, int, int]], PIL.Image.Image]
TextView = Callable[[str, tuple[int, int, int]], str]


class PairKey(NamedTuple):
    """One draw of one row: `subset` says that the row came with the extra batches and carries the extra texts."""

    epoch: int
    row: int
    subset: bool = False


@dataclass(frozen=True)
class ViewPlan:
    """Which views of a pair a defence wants: name -> function of (image or caption, (seed, epoch, row)).

    Args:
        images: Image views of every pair, in order.
        texts: Text views of every pair, in order.
        subset_texts: Further text views of the pairs that are drawn into the extra batches.
        subset_size: How many pairs are drawn into extra batches each epoch (CleanerCLIP's K).
        subset_share: Share of a stream's pairs that are drawn into them instead, in [0, 1]; see `PairStream`.
        subset_if: Whether a pair of this caption may be drawn into them; every pair may where it is None.
    """

    images: dict[str, ImageView]
    texts: dict[str, TextView]
    subset_texts: dict[str, TextView] | None = None
    subset_size: int = 0
    subset_share: float = 0.0
    subset_if: Callable[[str], bool] | None = None

    @property
    def text_names(self) -> tuple[str, ...]:
        """Names of all text views, the subset's last."""
        return (*self.texts, *(self.subset_texts or {}))


def same_image(image: PIL.Image.Image, key: tuple[int, int, int]) -> PIL.Image.Image:
    """Return the image itself: the view that every plan starts with."""
    return image


def same_caption(caption: str, key: tuple[int, int, int]) -> str:
    """Return the caption itself: the view that every plan starts with."""
    return caption


PLAIN_VIEWS = ViewPlan(images={"image": same_image}, texts={"caption": same_caption})


class PairViews(torch.utils.data.Dataset):
    """Rows of an image-caption dataset, addressed by `PairKey` and drawn as the views of a plan.

    Args:
        dataset: Map-style dataset; other columns than the two are never read (a victim sees no poison label). A
            format such as "torch" is taken off; a transform of its own (`with_transform`) is kept, and gets all
            columns.
        plan: The views.
        canvas: Geometry of the images; views are drawn on the canvas.
        seed: Seed of the draws.
        image_column: Column of images.
        caption_column: Column of captions.

    Raises:
        ValueError: If a column is missing, the dataset is empty, a row has no image (none is decoded to see
            that), or the plan draws a share, which is for streams; when rows are drawn, if an image cannot be read.
        TypeError: If a row has no caption.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        plan: ViewPlan,
        canvas: Canvas,
        seed: int = 0,
        image_column: str = "image",
        caption_column: str = "caption",
    ):
        names = names_of_columns(dataset)
        if len(dataset) == 0 or not {image_column, caption_column} <= set(names):
            raise ValueError(
                f"Expected rows with columns {image_column!r} and {caption_column!r}, but got {len(dataset)} rows "
                f"with {names}."
            )
        if plan.subset_share:
            raise ValueError(
                f"Expected a stream for a share of {plan.subset_share:g} of its pairs in extra batches, but got "
                f"{len(dataset)} rows. Set `k_pairs` to their number, and leave `k_share` out."
            )
        self.rows = with_columns(dataset, [image_column, caption_column])
        _check_filled(self.rows, image_column)
        self._encoded, self._decode = without_decoding(self.rows, image_column)
        self._captions = with_columns(dataset, [caption_column])
        self.plan, self.canvas, self.seed = plan, canvas, seed
        self.image_column, self.caption_column = image_column, caption_column

    def __len__(self) -> int:
        return len(self.rows)

    def in_subset(self, row: int) -> bool:
        """Return whether a row may be drawn into the extra batches (`ViewPlan.subset_if`); no image is decoded."""
        return self.plan.subset_if is None or self.plan.subset_if(self._captions[row][self.caption_column])

    def __getitem__(self, key: PairKey) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[PairKey]) -> list[dict[str, Any]]:
        """Return one `{"row": its number, "images": uint8 (V, H, W, 3), "texts": list of T captions}` a key."""
        rows = self._encoded[[key.row for key in keys]]
        pairs = zip(keys, rows[self.image_column], rows[self.caption_column], strict=True)
        return [self._drawn(key, image, caption) for key, image, caption in pairs]

    def _drawn(self, key: PairKey, image: Any, caption: Any) -> dict[str, Any]:
        return draw_views(self.plan, self.canvas, self.seed, key, image, caption, self._decode)


def draw_views(
    plan: ViewPlan,
    canvas: Canvas,
    seed: int,
    key: PairKey,
    image: Any,
    caption: str,
    decode: Callable[[Any], PIL.Image.Image],
    name: str = "",
    advice: str = _ADVICE,
) -> dict[str, Any]:
    """Return one draw of one row: `row`, `images` uint8 (V, H, W, 3) and `texts`, a list of T captions.

    Args:
        plan: The views.
        canvas: Geometry of the images.
        seed: Seed of the draws.
        key: Which draw of which row.
        image: What `decode` makes a picture of, or None.
        caption: The row's caption.
        decode: Makes a picture of `image`.
        name: What errors call the row; its number in the dataset where it is left out.
        advice: What errors say can be done.

    Raises:
        TypeError: If the caption is no text, or a view gives no RGB picture of the canvas.
        ValueError: If the row has no image, or one that `decode` or the canvas cannot read.
    """
    name = name or f"row {key.row}"
    if not isinstance(caption, str):
        raise TypeError(_no_text(name, caption, advice))
    draw = (seed, key.epoch, key.row)
    texts = {**plan.texts, **((plan.subset_texts or {}) if key.subset else {})}
    if image is None:
        raise ValueError(_no_image(name, advice))
    try:
        image = canvas(decode(image))
    except (TypeError, *UNREADABLE) as error:
        raise ValueError(f"{name[0].upper()}{name[1:]}: {reason(error)} {advice}") from error
    return {
        "row": key.row,
        "images": np.stack([_pixels(name, view(image, draw), image) for name, view in plan.images.items()]),
        "texts": [view(caption, draw) for view in texts.values()],
    }


def _pixels(name: str, view: Any, image: PIL.Image.Image) -> np.ndarray:
    """Return what the view of this name made of `image` as uint8 (H, W, 3); raises `TypeError` for anything else."""
    pixels, shape = np.asarray(view), (image.height, image.width, 3)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise TypeError(f"Expected the view `{name}` as uint8 {shape}, but got {pixels.dtype} {pixels.shape}.")
    return pixels


def _no_text(name: str, caption: Any, advice: str = _ADVICE) -> str:
    several = " Keep one of its captions, or make a row of each." if isinstance(caption, list) else ""
    return f"Expected a text as the caption of {name}, but got {type(caption).__name__}.{several} {advice}"


def _no_image(name: str, advice: str = _ADVICE) -> str:
    return f"{name[0].upper()}{name[1:]}: Expected an image, but the row has none. {advice}"


def _check_filled(rows: datasets.Dataset, image_column: str) -> None:
    """Raise, as `draw_views` would, at the first row with a gap; a picture that is neither bytes nor a path is one.

    Rows are only looked at where a column has gaps at all. A dataset with a transform of its own is left be.
    """
    if rows.format["type"] is not None or not any(_gaps(rows.data.column(name)).any() for name in rows.column_names):
        return
    start = 0
    for table in rows.with_format("arrow").iter(_LOOKED_AT):
        for name in rows.column_names:
            if len(found := np.flatnonzero(_gaps(table.column(name)))):
                row = f"row {start + int(found[0])}"
                raise ValueError(_no_image(row)) if name == image_column else TypeError(_no_text(row, None))
        start += table.num_rows


def _gaps(column: pa.ChunkedArray) -> np.ndarray:
    """Return which values of a column are missing, (N,) of bool, from its validity alone."""
    gaps = pc.is_null(column)
    if pa.types.is_struct(column.type) and {"bytes", "path"} <= {field.name for field in column.type}:
        inner = (pc.is_null(pc.struct_field(column, name)) for name in ("bytes", "path"))
        gaps = pc.or_(gaps, pc.and_(*inner))
    return gaps.to_numpy()


@dataclass
class PairCollator:
    """Stacks the views of a batch and tokenises all its texts in one call.

    Args:
        tokenize: Texts -> `input_ids` and `attention_mask`, (N * T, L), as `hf_clipbd.models.text_input.TextInput`.

    Returns:
        `rows`, their numbers (N,); `pixel_values` uint8 (N, V, 3, H, W); `input_ids` and `attention_mask` (N, T, L).
        A text longer than the tokenizer's limit is cut, its end token kept.
    """

    tokenize: Callable[[list[str]], dict[str, Tensor]]

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.stack([pair["images"] for pair in pairs]))  # (N, V, H, W, 3)
        tokens = self.tokenize([text for pair in pairs for text in pair["texts"]])
        tokens = {name: tokens[name].unflatten(0, (len(pairs), -1)) for name in ("input_ids", "attention_mask")}
        rows = torch.tensor([pair["row"] for pair in pairs])
        return {"rows": rows, "pixel_values": pixels.permute(0, 1, 4, 2, 3), **tokens}
