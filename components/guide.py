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
        self._is_over = False
        for part in ("interventions", "text", "model"):
            session.param.watch(lambda event: event.old is None or self._end(), part)

    def _end(self) -> None:
        self._is_over = True  # what is still being measured is of what there was before
        self.notice.text = ""

    def measure(self, run: Any) -> tuple[int, int, int, float, str] | None:
        # Brings torch, which the first paint does not wait for.
        from transpector.state.heads import attention_scores, followers

        scores = attention_scores(run)["induction"]
        if not scores.max() >= CLEAR:  # NaN where nothing repeats
            return None
        layer, head = divmod(int(scores.argmax()), scores.shape[1])
        attention = (run.pattern(layer, head) * followers(run.question.token_ids)).sum(-1)
        query = int(attention.argmax())
        return layer, head, query, float(scores[layer, head]), visible(run.tokens)[query]

    def show(self, numbers: tuple[int, int, int, float, str] | None) -> None:
        self.close()
        session = self.session
        if numbers is None or self._is_over or session.interventions or session.head != (0, 0):
            return
        layer, head, query, score, piece = numbers
        session.param.update(head=(layer, head), position=query)
        self.notice.text = (
            f"This text repeats. From each token, such as the framed “{piece}”, head L{layer}H{head} attends to what followed "
            f"that token before (induction score {score:.2f}), and so the second copy is easy to predict. "
            "Set the head to zero, at the right, and watch the loss."
        )

    def __panel__(self) -> Any:
        return self.notice
