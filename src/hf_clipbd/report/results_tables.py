# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The tables of a reproduction: BA and ASR of every model under every attack, and how well the poison is found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

from hf_clipbd.report.results_cells import NOT_RUN, Cells, spread
from hf_clipbd.schema import TOP_K
from hf_clipbd.tables import markdown
from hf_clipbd.templates import described_methods, method, percent


VICTIM_KS = (1, 5, 10)
"""Top k of the victims' figures in the table of triggers."""
SCANNED = ("auroc", "flagged", "false_alarms")
"""Figures of a scan, in the order of its table."""
VARIANTS = {
    "frequent": "frequent target",
    "natural": "natural captions",
    "mmcl_ssl": "victim with in-modal terms",
}
"""What follows a method in the name of an entry, in words; anything else is read as it is written."""
MEASURES = {
    "scan_clean": "Scanned against clean images",
    "scan_poisoned": "Scanned against the poisoned training set",
    "probe_scenes": "Linear probe on scenes",
    "probe_sketch": "Linear probe on sketches",
    "probe_night": "Linear probe on scenes at night",
    "probe_cifar10": "Linear probe on CIFAR-10",
    "sketch": "Sketches",
    "night": "Scenes at night",
}
"""Headings of further measurements; others are their own."""


def label(name: str) -> str:
    """Return the heading of an attack or model; of an entry `METHOD_VARIANT` the method's, and what is different.

    Example:
        >>> label("badnets"), label("badnets_frequent"), label("badnets_large_patch"), label("mine")
        ('BadNets', 'BadNets, frequent target', 'BadNets, large patch', 'mine')
    """
    known, start = described_methods(), name
    while start and start not in known:
        start = start.rpartition("_")[0]
    if start in ("", name):
        return method(name)["label"]
    variant = name.removeprefix(f"{start}_")
    return f"{method(start)['label']}, {VARIANTS.get(variant, variant.replace('_', ' '))}"


def measure_heading(name: str) -> str:
    """Return the heading of a further measurement."""
    return MEASURES.get(name, name)


def pair(ba: Sequence[float], asr: Sequence[float]) -> str:
    """Return two rates, such as BA and ASR, in percent, means over seeds.

    Example:
        >>> pair([0.95, 0.94], [0.02, 0.04]), pair([], [])
        ('94.5 / 3.0', 'not run')
    """
    return f"{percent(fmean(ba))} / {percent(fmean(asr))}" if ba and asr else NOT_RUN


def overview(cells: Cells, models: Sequence[str], ks: Sequence[int] = TOP_K) -> str:
    """Return the table of CleanerCLIP's Table 1: a row a k and model, a column an attack, "BA / ASR" in each cell."""
    rows = [
        [str(k), label(model), *(pair(cells.ba(one, model, k), cells.asr(one, model, k)) for one in cells.attacks)]
        for k in ks
        for model in models
    ]
    return markdown(["top", "model", *map(label, cells.attacks)], rows, text_columns=2)


def attack_table(cells: Cells, attack: str, models: Sequence[str]) -> str:
    """Return every figure of one attack: mean over the seeds and the range."""
    header = ["model", *(f"BA@{k}" for k in TOP_K), *(f"ASR@{k}" for k in TOP_K), "seeds"]
    rows = [
        [
            label(model),
            *(spread(cells.ba(attack, model, k)) for k in TOP_K),
            *(spread(cells.asr(attack, model, k)) for k in TOP_K),
            str(len(cells.reports(attack, model))),
        ]
        for model in models
    ]
    return markdown(header, rows)


def detection_table(cells: Cells) -> str | None:
    """Return AUROC, a row a detector and poison rate, a column an attack; None where nothing was searched."""
    by_attack = {attack: cells.detectors(attack) for attack in cells.attacks}
    return _by_detector(cells, lambda attack, key: spread(by_attack[attack].get(key, [])))


def detection_ranking_table(cells: Cells) -> str | None:
    """Return "average precision / recall", laid out as `detection_table`; None where neither was recorded."""
    precision, recall = (
        {attack: cells.detectors(attack, figure) for attack in cells.attacks} for figure in ("auprc", "recall")
    )
    if not any(precision.values()):
        return None
    return _by_detector(cells, lambda one, key: pair(precision[one].get(key, []), recall[one].get(key, [])))


def retrained_table(cells: Cells) -> str:
    """Return what became of training again without the most suspicious rows (`RetrainConfig`): a row an attack.

    The AUROC is that of the detector which the rows were dropped by, the first of the search.
    """
    rows = []
    for attack in cells.attacks:
        dropped = [one.metrics for one in cells.records(attack, "defend/retrain") if "dropped" in one.metrics]
        if not dropped:
            continue
        detector = next(iter(cells.detectors(attack)))
        found = [one["poisoned_dropped"] for one in dropped]
        present = [one["poisoned_dropped"] + one["poisoned_kept"] for one in dropped]
        rates = [cells.asr(attack, model, k) for k in (1, 10) for model in ("victim", "retrain", "clean")]
        shown = [
            label(detector[0]),
            spread(cells.detectors(attack)[detector]),
            f"{fmean(found):.0f} of {fmean(present):.0f}",
        ]
        rows.append([label(attack), *shown, *map(spread, rates), str(len(dropped))])
    asked = [f"ASR@{k} {model}" for k in (1, 10) for model in ("victim", "trained again", "clean")]
    return markdown(["attack", "detector", "AUROC", "poison dropped", *asked, "seeds"], rows, text_columns=2)


def _by_detector(cells: Cells, shown: Callable[[str, tuple[str, str]], str]) -> str | None:
    """Return what `shown` says of an attack and a (detector, rate): the rate of the training first."""
    keys = list(dict.fromkeys(key for attack in cells.attacks for key in cells.detectors(attack)))
    if not keys:
        return None
    rows = [
        [
            label(detector),
            f"{percent(float(rate), 2)} %" if rate else "as trained",
            *(shown(attack, (detector, rate)) for attack in cells.attacks),
        ]
        for detector, rate in sorted(keys, key=lambda key: (key[1] != "", key[1], keys.index(key)))
    ]
    return markdown(["detector", "poison rate", *map(label, cells.attacks)], rows, text_columns=2)


def triggers_table(cells: Cells) -> str:
    """Return how visible each trigger is, what the victim does, and what the clean model does beside: a row an attack.

    PSNR in dB and SSIM are means over the seeds, "-" where no gallery was made of the cell's trigger; BA, ASR and the
    clean model's ASR (the floor) are means over the seeds with their range, in percent.
    """
    rows = []
    for attack in cells.attacks:
        seen = cells.visibility(attack)
        rows.append(
            [
                label(attack),
                f"{fmean([one['psnr'] for one in seen]):.1f}" if seen else "-",
                f"{fmean([one['ssim'] for one in seen]):.3f}" if seen else "-",
                spread(cells.ba(attack, "clean", 1)),
                *(spread(cells.ba(attack, "victim", k)) for k in VICTIM_KS),
                *(spread(cells.asr(attack, "victim", k)) for k in VICTIM_KS),
                spread(cells.asr(attack, "clean", 1)),
                str(len(cells.reports(attack, "victim"))),
            ]
        )
    rates = [*(f"BA@{k}" for k in VICTIM_KS), *(f"ASR@{k}" for k in VICTIM_KS)]
    return markdown(["attack", "PSNR", "SSIM", "BA@1 clean", *rates, "floor ASR@1", "seeds"], rows)


def counts(cells: Cells, models: Sequence[str]) -> str:
    """Return a sentence: how many cells are there, and the sizes that the rates were measured on."""
    whole = [len(cells.attacks) * len(cells.seeds), 0]
    sizes = set()
    for attack in cells.attacks:
        done = [len(cells.reports(attack, model)) for model in models]
        whole[1] += min(done, default=0)
        for model in models:
            for report in cells.reports(attack, model):
                sizes |= {(report.ba[1].n, one.asr[1].n) for one in report.triggers.values()}
    measured = "; ".join(f"BA on {n} images, ASR on {m} of other classes" for n, m in sorted(sizes))
    seeds = ", ".join(map(str, cells.seeds))
    said = f"{whole[1]} of {whole[0]} cells (attack and seed) are there; seeds {seeds}, means over those that are."
    said += f" {measured}." if measured else ""
    left_out = ", ".join(f"{attack}/seed{seed}" for attack, seed in cells.others)
    return f"{said} Left out, since run with other settings: {left_out}." if left_out else said


def curves_table(cells: Cells, models: Sequence[str]) -> str:
    """Return ASR@1 after each epoch of every defence, means over the seeds, and how much of the drop came at once.

    The last column is (ASR of the victim - ASR after the first epoch) / (ASR of the victim - ASR after the last), all
    measured on the images of the epochs' measurements; "-" where the ASR did not fall.
    """
    trained = [model for model in models if model not in ("clean", "victim")]
    runs = {(attack, model): cells.asr_by_epoch(attack, model) for attack in cells.attacks for model in trained}
    epochs = max((len(run) for found in runs.values() for run in found), default=1)
    rows = []
    for (attack, model), found in runs.items():
        start = [run[-1] for run in cells.asr_by_epoch(attack, "victim")]
        if not found or not start:
            rows.append([label(attack), label(model), *[NOT_RUN] * (epochs + 2)])
            continue
        means = [fmean([run[epoch] for run in found if epoch < len(run)]) for epoch in range(max(map(len, found)))]
        fall = fmean(start) - means[-1]
        share = f"{percent((fmean(start) - means[0]) / fall, 0)} %" if fall > 0 else "-"
        shown = [*map(percent, means), *["-"] * (epochs - len(means))]
        rows.append([label(attack), label(model), percent(fmean(start)), *shown, share])
    header = ["attack", "model", "victim", *(f"epoch {epoch + 1}" for epoch in range(epochs)), "in the first"]
    return markdown(header, rows, text_columns=2)


def measured_table(cells: Cells, measure: str, models: Sequence[str]) -> str:
    """Return the figures of a further measurement: BA@1 and ASR@1 of every attack and model, and the images behind.

    Of a scan it has a row an attack, model and detector: AUROC, and the shares of stamped and clean images flagged.
    """
    scans = {(attack, model): cells.scans(attack, model, measure) for attack in cells.attacks for model in models}
    if any(scans.values()):
        return _scan_table(scans)
    rows = []
    for attack in cells.attacks:
        for model in models:
            ba, asr = cells.ba(attack, model, 1, measure), cells.asr(attack, model, 1, measure)
            sizes = sorted({report.ba[1].n for report in cells.reports(attack, model, measure)})
            shown = [spread(ba), spread(asr) if asr or not ba else "-", ", ".join(map(str, sizes)) or "-"]
            rows.append([label(attack), label(model), *shown, str(len(ba))])
    return markdown(["attack", "model", "BA@1", "ASR@1", "images", "seeds"], rows, text_columns=2)


def _scan_table(scans: Mapping[tuple[str, str], Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """Return the table of a scan from (attack, model) -> detector -> figures; only what was scanned has rows."""
    rows = [
        [label(attack), label(model), label(detector), *(spread([one[key] for one in found]) for key in SCANNED),
         str(len(found))]
        for (attack, model), by_detector in scans.items()
        for detector, found in by_detector.items()
    ]  # fmt: skip
    return markdown(["attack", "model", "detector", "AUROC", "stamped flagged", "clean flagged", "runs"], rows, 3)


def sections(cells: Cells, models: Sequence[str]) -> Iterator[str]:
    """Yield the parts of a reproduction's page: overview, curves, detection, measurements, then attack by attack."""
    yield counts(cells, models)
    yield "BA / ASR in percent."
    yield overview(cells, models)
    yield "ASR@1 by epoch, in percent."
    yield curves_table(cells, models)
    found = detection_table(cells)
    if found is not None:
        yield "AUROC in percent, mean (lowest to highest) over the seeds."
        yield found
    for measure in cells.measures():
        yield f"Measured besides: {measure_heading(measure)}"
        yield measured_table(cells, measure, models)
    yield from attack_sections(cells, models)


def attack_sections(cells: Cells, models: Sequence[str]) -> Iterator[str]:
    """Yield a heading and every figure of each attack that has a record."""
    for attack in cells.attacks:
        if any(cells.reports(attack, model) for model in models):
            yield f"### {label(attack)}"
            yield attack_table(cells, attack, models)
