# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""What `push_to_hub` becomes for models that may be backdoored: one push, at the end, whole or not at all."""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import datasets

from hf_clipbd.data.row_format import has_transform, names_of_columns
from hf_clipbd.schema import IS_POISONED


if TYPE_CHECKING:
    from transformers import TrainingArguments


class Publisher(Protocol):
    """What takes a trained model to the Hub; `hf_clipbd.hub.TrainedPublisher` is the one of this package."""

    def prepare(self, trainer: Any) -> None:
        """Refuse what must not go up, before the training, and measure the model it starts from."""

    def publish(self, trainer: Any, token: str | None, private: bool, message: str) -> str:
        """Measure the model, push it with its card in one commit, and return the commit's address."""


class Marks(NamedTuple):
    """What training rows say of themselves: how many are poisoned, None where that is not known, and whether any is.

    Rows without the column say nothing; of a stream that has it, or a transform that makes it, any may be poisoned.
    """

    count: int | None
    poisoned: bool


def poison_marks(rows: datasets.Dataset | datasets.IterableDataset) -> Marks:
    """Return what the rows' column `is_poisoned` says.

    Example:
        >>> poison_marks(datasets.Dataset.from_dict({"is_poisoned": [True, False, True]}))
        Marks(count=2, poisoned=True)
    """
    streamed = isinstance(rows, datasets.IterableDataset)
    if IS_POISONED not in ((rows.column_names or ()) if streamed else names_of_columns(rows)):
        return Marks(None, False)
    if streamed or has_transform(rows):
        return Marks(None, True)
    count = sum(map(bool, rows.with_format(None)[IS_POISONED]))
    return Marks(count, count > 0)


def check_pushing(
    args: "TrainingArguments", publisher: Publisher | None, rows: datasets.Dataset | datasets.IterableDataset
) -> Marks:
    """Return the marks of the training rows, if what `push_to_hub` will send may go up.

    Raises:
        ValueError: If there is no publisher, checkpoints are to be pushed, or rows are marked as poisoned without
            `allow_backdoored`.
    """
    if publisher is None:
        raise ValueError(
            "Expected a `publisher` beside `push_to_hub`, which measures the model and writes its card. Pass "
            "publisher=hf_clipbd.hub.TrainedPublisher() to the trainer; for a whole run, `hf-clipbd run` takes "
            "`--push_to_hub`."
        )
    strategy = str(getattr(args.hub_strategy, "value", args.hub_strategy))
    if strategy != "end":
        raise ValueError(
            f"Expected `hub_strategy` end, but got {strategy}: a checkpoint has no evaluation, and a model without "
            "one is not pushed. Leave it out."
        )
    marks = poison_marks(rows)
    if marks.poisoned and not args.allow_backdoored:
        raise ValueError(
            "Expected clean training pairs beside `push_to_hub`, but some of these are marked as poisoned, so the "
            "model may be backdoored. Set `allow_backdoored` if you mean to publish it; its card says so in the first "
            "line."
        )
    return marks


class PushOnce:
    """Puts one push by `publisher` in the place of transformers' own, which make a repository at once and fill it in
    several commits, with a card that knows no figures.

    The repository is private unless `hub_private_repo` is false, and is made by the push itself.
    """

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make no repository: the push does, when everything that belongs in it is there."""
        self.hub_model_id = self.args.hub_model_id

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push no checkpoint."""

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Write no card: it is rendered from the figures by the push."""

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> str:
        """Measure the model as it is now, push it with its card in one commit, and return the commit's address.

        Every process has to call it; the main one pushes, the others wait for it, and if it fails they fail as well.

        Args:
            commit_message: Title of the commit.
            blocking: Only True: a push in the background could fail unseen.
            token: Hub token; `hub_token`, then the stored one, by default.
            revision: Only None and `main`.
            private: Whether the repository has to be private; `hub_private_repo` by default.

        Raises:
            ValueError: If `push_to_hub` was not set when the trainer was built, a file holds a token, or the
                repository is public and should not be.
            PermissionError: If the Hub does not let you write there.
            ConnectionError: If the Hub did not take it; the repository then holds nothing of this push.
            RuntimeError: Of several processes on all but the main one, if that could not push.
        """
        if not self.args.push_to_hub:
            raise ValueError(
                "Expected `push_to_hub` among the trainer's arguments from the start, since the model is measured "
                "before the training as well, but it is not set."
            )
        if not blocking or (revision or self.args.hub_revision) not in (None, "main"):
            raise ValueError("Expected a push that is waited for, to the branch `main`; leave both options out.")
        if private is None:
            private = self.args.hub_private_repo is not False
        return self.publisher.publish(self, token or self.args.hub_token, private, commit_message or "Add the model")
