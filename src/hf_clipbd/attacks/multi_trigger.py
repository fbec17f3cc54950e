# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""Several attacks in one dataset, each with its own target and rate."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets

from hf_clipbd.attacks.base import Attack
from hf_clipbd.attacks.dataset import lay
from hf_clipbd.attacks.shares import Options, Share
from hf_clipbd.schema import CAPTION, IMAGE, PoisonManifest


MULTI_TRIGGER = "multi_trigger"
"""What the manifest of such a dataset names as its attack."""


def poison_with_many(
    dataset: datasets.Dataset,
    shares: Mapping[str, Share],
    seed: int = 0,
    image_column: str = IMAGE,
    caption_column: str | None = CAPTION,
    on_error: str = "raise",
    num_proc: int | None = None,
    class_names: Sequence[str] | None = None,
    image_format: str = "webp",
) -> tuple[datasets.Dataset, PoisonManifest]:
    """Return the dataset with several attacks laid in it, no row poisoned twice, and one manifest for all of them.

    All shares draw from one order of the rows, each the first that are still free, so that an earlier share's rows do
    not depend on a later one. All other arguments are those of `poison_dataset`.

    Args:
        shares: Name -> attack, count or rate, selector. The name goes into the column `trigger`, so that two attacks
            of one kind can be told apart.
        seed: Seed of the selection.

    Returns:
        The poisoned dataset and its manifest: attack `"multi_trigger"`, the indices of all poisoned rows, and in
        `parameters["triggers"]`, by name, each one's attack, parameters, target, selector, rate and indices;
        `manifest_of` takes one out.

    Raises:
        TypeError: If `dataset` is no map-style dataset.
        ValueError: As `poison_dataset`, if there is no share, a name is empty, or the shares together exceed the rows
            that can be poisoned. Nothing is written then.

    Example:
        >>> from hf_clipbd.attacks import SIG, BadNets
        >>> from hf_clipbd.scenes import load_scenes
        >>> shares = {"wave": Share(SIG(), count=2), "patch": Share(BadNets(target="owl"), rate=0.05)}
        >>> poisoned, manifest = poison_with_many(load_scenes("train", size=32, n=60), shares)
        >>> sorted(one for one in poisoned["trigger"] if one), manifest.count
        (['patch', 'patch', 'patch', 'wave', 'wave'], 5)
    """
    if not shares or not all(isinstance(name, str) and name.strip() for name in shares):
        raise ValueError(f"Expected at least one share, each with a name, but got {list(shares)}.")
    options = Options(image_column, caption_column, on_error, num_proc, class_names, image_format)
    laid = lay(shares, dataset, seed, options)
    manifests = list(laid.manifests.values())
    own = ("attack", "parameters", "target", "selector", "rate", "indices", "skipped", "covers")
    triggers = {name: {key: getattr(one, key) for key in own} for name, one in laid.manifests.items()}
    manifest = replace(
        manifests[0],
        attack=MULTI_TRIGGER,
        parameters={"triggers": triggers},
        target=", ".join(dict.fromkeys(one.target for one in manifests)),
        indices=sorted(row for one in manifests for row in one.indices),
        selector=", ".join(dict.fromkeys(one.selector for one in manifests)),
        rate=None,
        skipped={row: why for one in manifests for row, why in one.skipped.items()} | laid.emptied,
        covers=sorted(row for one in manifests for row in one.covers),
    )
    return laid.dataset, manifest


def manifest_of(manifest: PoisonManifest, name: str) -> PoisonManifest:
    """Return the manifest of one trigger out of that of several.

    Args:
        manifest: What `poison_with_many` returned.
        name: The trigger's name.

    Raises:
        ValueError: If it is the manifest of a single attack, or holds no such trigger.
    """
    triggers: dict[str, Any] = manifest.parameters.get("triggers", {}) if manifest.attack == MULTI_TRIGGER else {}
    if name not in triggers:
        raise ValueError(f"Expected a trigger among {sorted(triggers)}, but got {name!r}.")
    return PoisonManifest(
        **triggers[name],
        n_rows=manifest.n_rows,
        seed=manifest.seed,
        source_fingerprint=manifest.source_fingerprint,
        versions=manifest.versions,
    )


def attacks_of(manifest: PoisonManifest) -> dict[str, Attack]:
    """Return the attacks of a manifest by name, built again from their parameters.

    Raises:
        ValueError: If an attack is unknown, or one holds a picture of its own, which a manifest does not carry.
    """
    from hf_clipbd.attacks import ATTACKS

    single = {manifest.attack: {"attack": manifest.attack, "parameters": manifest.parameters}}
    triggers = manifest.parameters["triggers"] if manifest.attack == MULTI_TRIGGER else single
    built = {}
    for name, one in triggers.items():
        tensors = [key for key, value in one["parameters"].items() if isinstance(value, Mapping) and "tensor" in value]
        if one["attack"] not in ATTACKS or tensors:
            raise ValueError(
                f"Expected {name} to be an attack among {sorted(ATTACKS)} without pictures of its own, but got "
                f"{one['attack']!r} with {tensors}. Load it with `Attack.from_pretrained` from its folder."
            )
        built[name] = ATTACKS[one["attack"]](**one["parameters"])
    return built
