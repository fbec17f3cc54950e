# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""BackdoorDetection, the `evaluate` metric; this file also loads by `evaluate.load("path/to/metric.py")`, offline."""

from typing import Any

import datasets
import evaluate

from hf_clipbd.detection.detect import detect
from hf_clipbd.detection.performance import detection_performance


_DESCRIPTION = """
How well suspicion scores tell poisoned image-text pairs from clean ones: AUROC, AUPRC, the false-positive rate at 95 %
recall, precision and recall among as many rows as are poisoned, and recall among the 1 % that score highest.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: One score for each row; higher is more suspicious.
    references: For each row 1 (poisoned) or 0 (clean).
    n_flagged: How many rows are flagged; the number of poisoned rows by default.
    embeddings: Instead of predictions, image embeddings (N, D) to be scored; any array, passed by reference.
    detector: Which detector scores them; others of its options (m, k, seed, normalize) are keywords too.

Returns:
    auroc, auprc, fpr_at_95_tpr, precision, recall, recall_at_1_percent: shares in [0, 1].
    n, n_poisoned: numbers of rows.

Examples:
    >>> from hf_clipbd.detection import BackdoorDetection
    >>> metric = BackdoorDetection()
    >>> metric.compute(predictions=[0.1, 0.4, 0.3, 0.9], references=[0, 0, 1, 1])["auroc"]
    0.75
"""

_CITATION = """
@inproceedings{huang2025detecting,
  title={Detecting Backdoor Samples in Contrastive Language Image Pretraining},
  author={Huang, Hanxun and Erfani, Sarah and Li, Yige and Ma, Xingjun and Bailey, James},
  booktitle={International Conference on Learning Representations},
  year={2025}
}
"""


class BackdoorDetection(evaluate.Metric):
    """Detection performance of suspicion scores as an `evaluate` metric.

    A reference of one kind only, a NaN score and lists of different length are errors. What it computes and from what
    is that of `hf_clipbd.detection.detection_performance`; on several processes gather the scores first.

    Example:
        >>> BackdoorDetection().compute(predictions=[0.1, 0.4, 0.3, 0.9], references=[0, 0, 1, 1])["recall"]
        0.5
    """

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        n_flagged: int | None = None,
        embeddings: Any = None,
        **options: Any,
    ) -> dict[str, float | int]:
        """Return the figures of scores, or of embeddings that are scored first by `hf_clipbd.detection.detect`.

        Scores and labels go through Arrow and may come in batches (`add_batch`); embeddings never do, which for 512
        floats a row would take minutes and many times their memory.

        Args:
            predictions: (N,), one score a row.
            references: (N,), 1 for poisoned rows.
            n_flagged: How many rows are flagged.
            embeddings: Instead of predictions, (N, D).
            **options: What `detect` takes besides, for instance `detector="dao"`.

        Raises:
            ValueError: If both, labels or scores alone, or options without embeddings are given, or as in
                `detection_performance`.

        Example:
            >>> rows = [[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, -1.0], [0.7, 0.3]]
            >>> truth = [0, 0, 0, 1, 0]
            >>> BackdoorDetection().compute(embeddings=rows, references=truth, detector="k_distance", k=2)["auroc"]
            1.0
        """
        if embeddings is None and options:
            raise ValueError(f"Expected {sorted(options)} only beside `embeddings`, but there are none.")
        if embeddings is not None and predictions is not None:
            raise ValueError("Expected predictions or embeddings, but got both.")
        scored, labelled = embeddings is not None or predictions is not None, references is not None
        if scored != labelled:
            raise ValueError(
                f"Expected `predictions` (or `embeddings`) and `references`, but got "
                f"{'no references' if scored else 'references alone'}. Give both, or neither after `add_batch`."
            )
        if embeddings is not None:
            predictions = detect(embeddings, **options)
        # None stands for the rows of `add_batch`, which `evaluate` tells from those given by their absence.
        given = {"predictions": predictions, "references": references}
        return super().compute(**{name: one for name, one in given.items() if one is not None}, n_flagged=n_flagged)

    def _info(self) -> evaluate.MetricInfo:
        """Return the features that come in: a float and a 0/1 label a row."""
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2502.01385"],
        )

    def _compute(
        self, predictions: list[float], references: list[int], n_flagged: int | None = None
    ) -> dict[str, float | int]:
        """Return the figures as plain Python numbers."""
        return detection_performance(predictions, references, n_flagged)
