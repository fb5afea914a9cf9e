"""Guide: a first sight of something, when a page is new and its text repeats."""

from typing import Any, ClassVar

from transpector.components.base import Pane, visible
from transpector.components.parts.notice import Notice

CLEAR = 0.3  # an induction score that is worth pointing out


class Guide(Pane):
    """On the first run, selects the strongest induction head and says what there is to see; gone once it is used."""

    reads: ClassVar = ("run",)

    def __init__(self, session: Any, **params: Any):
        super().__init__(session, **params)
        self.notice = Notice(dark=self.param.dark)
        for part in ("interventions", "text", "model"):
            session.param.watch(lambda event: event.old is None or self.notice.param.update(text=""), part)

    def measure(self, run: Any) -> tuple[int, int, int, float, str] | None:
        from transpector.state.measure import (  # brings torch, which the first paint does not wait for
            induction_scores,
            repeats,
        )

        scores = induction_scores(run)
        layer, head = divmod(int(scores.argmax()), scores.shape[1])
        if scores[layer, head] < CLEAR:
            return None
        queries, keys = repeats(run.question.token_ids)
        attention = run.pattern(layer, head)[queries, keys]
        query = queries[int(attention.argmax())]
        return layer, head, query, float(scores[layer, head]), visible(run.tokens)[query]

    def show(self, numbers: tuple[int, int, int, float, str] | None) -> None:
        self.close()
        session = self.session
        if numbers is None or session.interventions or session.head != (0, 0):
            return
        layer, head, query, score, piece = numbers
        session.param.update(head=(layer, head), position=query)
        self.notice.text = (
            f"This text repeats. From each token, such as the framed “{piece}”, head L{layer}H{head} attends to what followed "
            f"that token the last time (induction score {score:.2f}), and so the second copy is easy to predict. "
            "Set the head to zero, at the right, and watch the loss."
        )

    def __panel__(self) -> Any:
        return self.notice
