# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Poisoning exactly so many rows of a dataset; all the others keep their bytes and are not even decoded."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import datasets
import numpy as np

from hf_clipbd.attacks.base import Attack, cover_name
from hf_clipbd.attacks.captions import names_target
from hf_clipbd.attacks.pictures import as_image_column
from hf_clipbd.attacks.select import candidates, source_fingerprint
from hf_clipbd.attacks.shares import PROVENANCE, Options, Share, check_columns
from hf_clipbd.attacks.stamping import Stamp, Stamped, stamp_rows, warn_of_skipped
from hf_clipbd.data.behind import behind
from hf_clipbd.data.path_rows import unfit_files
from hf_clipbd.schema import CAPTION, IMAGE, IS_POISONED, SOURCE_INDEX, TRIGGER, PoisonManifest


def poison_dataset(
    dataset: datasets.Dataset,
    attack: Attack,
    count: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    selector: str | Sequence[int] | None = None,
    image_column: str = IMAGE,
    caption_column: str | None = CAPTION,
    on_error: str = "raise",
    num_proc: int | None = None,
    class_names: Sequence[str] | None = None,
    image_format: str = "webp",
) -> tuple[datasets.Dataset, PoisonManifest]:
    """Return the dataset with exactly `count` of its rows poisoned, in place and in order, and the manifest.

    The rows drawn are those with the smallest hash of (seed, row number), so a larger count includes a smaller one's.
    Their pictures are stamped on the attack's canvas and stored losslessly, their captions replaced. Every other row
    keeps its image bytes; it is neither decoded nor copied, except where `select` took a row twice: then all rows are
    written out first. Columns `is_poisoned`, `source_index` (the row's number in `dataset`) and `trigger` are added.
    Rows that are poisoned already are left alone, so several attacks can follow one another; `poison_with_many` lays
    them in one go. Covers (WaNet's `noise_mode`) keep their captions.

    Saving or pushing the result takes the files in that its rows name, so each of them has to be a picture, of clean
    rows too; see `hf_clipbd.data.path_rows`.

    Args:
        dataset: Images and captions; an image column of paths, encoded bytes or arrays is turned into `Image`.
        attack: The attack.
        count: How many rows to poison.
        rate: Share of all rows to poison, in [0, 1], in place of `count`; rounded to a whole number of rows.
        seed: Seed of the selection.
        selector: `"random"` (the default), `"label_consistent"` (rows whose caption names the target; the default of
            attacks that keep captions), `"non_target"` (rows whose caption does not), or row numbers in the order of
            preference.
        image_column: Column of images.
        caption_column: Column of captions; None if there is none (a labelled set).
        on_error: `"raise"` at a row that cannot be poisoned, or `"skip"` it, take the next and list it in the
            manifest. A row whose file is no picture loses its image then.
        num_proc: Number of processes that stamp.
        class_names: Classes of which the target has to be one; None takes those of a `ClassLabel` column `label`.
        image_format: How poisoned pictures are stored, without loss: `"webp"` or `"png"`.

    Returns:
        The poisoned dataset, of the same length and without a format, and its manifest.

    Raises:
        TypeError: If `dataset` is no map-style dataset.
        ValueError: If a column is missing or its name is taken, captions are no texts, the target is no class, the
            count exceeds the rows that can be poisoned, a row cannot be (the message names it), or one names a file
            that is no picture. Nothing is written then.
    """
    options = Options(image_column, caption_column, on_error, num_proc, class_names, image_format)
    laid = lay({attack.name: Share(attack, count, rate, selector)}, dataset, seed, options)
    manifest = laid.manifests[attack.name]
    return laid.dataset, replace(manifest, skipped={**manifest.skipped, **laid.emptied})


class Laid(NamedTuple):
    """The poisoned dataset, each share's manifest, and row -> why it lost its image (its file is no picture)."""

    dataset: datasets.Dataset
    manifests: dict[str, PoisonManifest]
    emptied: dict[str, str]


def lay(shares: Mapping[str, Share], dataset: datasets.Dataset, seed: int, options: Options) -> Laid:
    """Return the dataset with every share laid, no row poisoned twice; see `poison_dataset` and `poison_with_many`.

    Args:
        shares: What goes into the column `trigger` -> a share. An earlier one draws its rows first.
        dataset: The dataset.
        seed: Seed of the selection.
        options: The rest.
    """
    plain = _plain(dataset, [share.attack for share in shares.values()], options)
    counts = {name: share.rows(len(plain)) for name, share in shares.items()}
    taken = np.zeros(len(plain), dtype=bool)
    if IS_POISONED in plain.column_names:
        taken |= np.asarray(plain[IS_POISONED], dtype=bool)
        taken |= np.fromiter((bool(name) for name in plain[TRIGGER]), bool, len(plain))  # covers; none where joined
    changed = taken.copy()
    untouched = plain.select(np.flatnonzero(~changed)) if changed.any() else plain
    _check_enough(plain, shares, counts, seed, options, taken.copy())
    original, feature = dataset.features[options.image_column], plain.features[options.image_column]
    base = _with_provenance(plain.cast_column(options.image_column, datasets.Image(decode=False)))
    base, emptied = _with_pictures_alone(base, options)
    columns, skip = (options.image_column, options.caption_column), options.on_error == "skip"
    source = source_fingerprint(plain, *columns)
    everything, order, manifests = [base], np.arange(len(base)), {}
    for name, share in shares.items():
        rows = _rows(plain, name, share, counts[name], seed, options, taken)
        attack = share.attack.mined(untouched[options.caption_column] if options.caption_column else [])
        stamp = Stamp(attack, name, *columns, skip, feature.mode, options.image_format)
        donors = _donors(plain, attack, options, changed) if attack.borrows_pictures else None
        found, covers = stamp_rows(base, rows, counts[name], stamp, donors, options.num_proc), Stamped([], [], {})
        taken[found.chosen] = True
        if attack.cover and found.chosen:
            count = _covers(attack, len(found.chosen))
            rows = _rows(plain, name, share, count, seed, options, taken)
            layer = replace(stamp, attack=attack.cover.attack, name=cover_name(name), poisons=False)
            covers = stamp_rows(base, rows, count, layer, None, options.num_proc)
            taken[covers.chosen] = True
        chosen = found.chosen + covers.chosen
        order[chosen] = sum(map(len, everything)) + np.arange(len(chosen))
        everything += found.parts + covers.parts
        manifests[name] = PoisonManifest(
            attack=attack.name,
            parameters=attack.parameters(),
            target=attack.target,
            indices=sorted(found.chosen),
            n_rows=len(plain),
            seed=seed,
            source_fingerprint=source,
            selector=_rule(share) if isinstance(_rule(share), str) else "rows",
            rate=share.rate,
            skipped=found.skipped | covers.skipped,
            covers=sorted(covers.chosen),
        )
    poisoned = datasets.concatenate_datasets(everything).select(order) if len(everything) > 1 else base
    poisoned = poisoned.cast_column(
        options.image_column, original if isinstance(original, datasets.Image) else feature
    )
    return Laid(poisoned, manifests, emptied)


def _with_pictures_alone(base: datasets.Dataset, options: Options) -> tuple[datasets.Dataset, dict[str, str]]:
    """Return the dataset without images whose file is no picture, and row -> why; raise where none may be skipped."""
    emptied: dict[str, str] = {}
    for row, column, problem in unfit_files(base):
        if column != options.image_column:
            raise ValueError(f"Row {row}, column {column!r}: {problem}")
        if options.on_error != "skip":
            raise ValueError(f'Row {row}: {problem} Or pass on_error="skip".')
        emptied[str(row)] = problem
    if not emptied:
        return base, emptied
    warn_of_skipped(emptied)
    rows = [int(row) for row in emptied]
    given = {"features": base.features, "fn_kwargs": {"column": options.image_column}}
    order = np.arange(len(base))
    order[rows] = len(base) + np.arange(len(rows))
    return datasets.concatenate_datasets([base, base.select(rows).map(_emptied, **given)]).select(order), emptied


def _emptied(row: Any, column: str) -> dict[str, Any]:
    return {column: None}


def _check_enough(
    plain: datasets.Dataset,
    shares: Mapping[str, Share],
    counts: Mapping[str, int],
    seed: int,
    options: Options,
    taken: np.ndarray,
) -> None:
    """Raise `ValueError` if there are too few rows for all shares and their covers, before anything is stamped."""
    if len(shares) > 1 or any(share.attack.cover for share in shares.values()):
        for name, share in shares.items():
            needed = counts[name] + _covers(share.attack, counts[name])
            taken[_rows(plain, name, share, needed, seed, options, taken)[:needed]] = True


def _covers(attack: Attack, count: int) -> int:
    """Return how many rows are covers beside `count` poisoned ones."""
    return round(attack.cover.ratio * count) if attack.cover else 0


def _rule(share: Share) -> str | Sequence[int]:
    """Return the share's selector, or its attack's where it has none."""
    return share.attack.selector if share.selector is None else share.selector


def _rows(
    plain: datasets.Dataset, name: str, share: Share, count: int, seed: int, options: Options, taken: np.ndarray
) -> np.ndarray:
    """Return the free rows that the selector admits, those to poison first at the front; raise if too few."""
    captions = plain[options.caption_column] if options.caption_column else None
    rows = candidates(len(plain), seed, _rule(share), captions, share.attack.target)
    rows = rows[~taken[rows]]
    if count > len(rows):
        admits = repr(_rule(share)) if isinstance(_rule(share), str) else "'row numbers'"
        raise ValueError(
            f"Expected a count of at most {len(rows)}, what selector {admits} admits, but got {count} for {name}."
        )
    return rows


def _donors(plain: datasets.Dataset, attack: Attack, options: Options, changed: np.ndarray) -> np.ndarray:
    """Return the numbers of the rows that show the target and were not changed before; raise if there is none."""
    if options.caption_column is None:
        raise ValueError(f"Expected a caption column for {attack.name}, whose trigger is in the caption.")
    shows = np.fromiter((names_target(one, attack.target) for one in plain[options.caption_column]), bool, len(plain))
    shows &= ~changed
    if not shows.any():
        raise ValueError(
            f"Expected rows whose caption names {attack.target!r}, for {attack.name} needs their pictures, "
            f"but found none."
        )
    return np.flatnonzero(shows)


def _plain(dataset: datasets.Dataset, attacks: Sequence[Attack], options: Options) -> datasets.Dataset:
    """Return the dataset without a format and with its image column as `Image`; raise where it cannot be poisoned."""
    if not isinstance(dataset, datasets.Dataset):
        hint = "Pass one split of it" if isinstance(dataset, dict) else "Map a `PoisonTransform` over it instead"
        raise TypeError(f"Expected a `datasets.Dataset`, but got {type(dataset).__name__}. {hint}.")
    targets = [attack.target for attack in attacks]
    check_columns(dataset.features, options.image_column, options.caption_column, targets, options.class_names)
    return as_image_column(dataset.with_format(None), options.image_column)


def _with_provenance(base: datasets.Dataset) -> datasets.Dataset:
    """Return the dataset with the three columns of provenance, those of an earlier poisoning kept.

    Where rows without them were joined to poisoned ones, 🤗 Datasets leaves gaps; these rows are clean.

    They are added to the rows that lie behind a selection, which copies no picture; where it has a row twice, whose
    two copies have numbers of their own, the selection is written out.
    """
    whole, numbers = behind(base)
    if numbers is not None and len(np.unique(numbers)) < len(numbers):
        whole, numbers = base, None
    n = len(whole)
    source = np.arange(n)
    if numbers is not None:
        source = np.full(n, -1)
        source[numbers] = np.arange(len(numbers))
    for name, values in ((IS_POISONED, np.zeros(n, dtype=bool)), (SOURCE_INDEX, source), (TRIGGER, [""] * n)):
        if name not in base.column_names:
            whole = whole.add_column(name, values, feature=PROVENANCE[name])
        elif whole.data.column(name).null_count:
            known = whole[name][:]
            filled = [own if one is None else one for one, own in zip(known, values, strict=True)]
            names = whole.column_names
            whole = whole.remove_columns(name).add_column(name, filled, feature=PROVENANCE[name]).select_columns(names)
    return whole if numbers is None else whole.select(numbers)
