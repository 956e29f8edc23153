"""Conversations that the evaluated model holds, for the tasks that judge what it says by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttt_moshi.evaluation.errors import EvaluationError, writing
from ttt_moshi.evaluation.scoring.ranks import Ranks
from ttt_moshi.inference.driver import Conversation, Driver, Item, read_conversation


def needed(talker: Talker | None) -> Talker:
    """The model that talks. Raises `EvaluationError` where there is none."""
    if talker is None:
        raise EvaluationError("a model that talks is needed: `ttt-moshi eval` has one")
    return talker


@dataclass(frozen=True)
class Talker:
    """The evaluated model as one that talks.

    Args:
        driver: how it does.
        folder: where the conversations of all tasks are; they stay there, to be listened to.
    """

    driver: Driver
    folder: Path

    @property
    def state_id(self) -> str:
        """That of the model."""
        return self.driver.speaker.state_id

    def check(self, task: str, items: Sequence[Item], ranks: Ranks) -> None:
        """Looks whether the conversations that are there are this model's, for tasks that do other work before they
        talk. Call it on all ranks.

        Raises:
            EvaluationError: one that is not.
        """
        ranks.together(lambda: self.driver.lacking(ranks.share(items), self.folder / task))

    def converse(
        self,
        task: str,
        items: Sequence[Item],
        ranks: Ranks,
        progress: Callable[[int], None],
        overwrite: bool = False,
    ) -> list[Conversation]:
        """The conversation of every item, in their order; those that are there already are not held again.

        Each rank holds its share. Call it on all ranks.

        Args:
            progress: told how many frames were heard, again and again.
            overwrite: whether those that are there are held again.

        Raises:
            EvaluationError: one that broke off, or cannot be begun.
        """
        folder = self.folder / task

        def hold() -> None:
            problems: list[str] = []

            def done(name: str, failure: str | None) -> None:
                if failure is not None:
                    problems.append(f"{name}: {failure}")

            with writing(folder):
                self.driver.converse(ranks.share(items), folder, overwrite, done, progress)
            if problems:
                raise EvaluationError(f"{len(problems)} conversations failed ({problems[0]})")

        ranks.together(hold)
        return ranks.together(lambda: [read_conversation(folder / item.name) for item in items])
