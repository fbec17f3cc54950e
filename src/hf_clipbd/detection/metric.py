# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""BackdoorDetection, the `evaluate` metric; this file also loads by `evaluate.load("path/to/metric.py")`, offline."""

import datasets
import evaluate

from hf_clipbd.detection.performance import detection_performance


_DESCRIPTION = """
How well suspicion scores tell poisoned image-text pairs from clean ones: AUROC, AUPRC, the false-positive rate at 95 %
recall, and precision and recall among as many rows as are poisoned.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: One score for each row; higher is more suspicious.
    references: For each row 1 (poisoned) or 0 (clean).
    n_flagged: How many rows are flagged; the number of poisoned rows by default.

Returns:
    auroc, auprc, fpr_at_95_tpr, precision, recall: shares in [0, 1].
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
