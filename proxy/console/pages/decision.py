"""The decision on one request: why may this agent do that, or why not?"""

from __future__ import annotations

from proxy.console.base.api import ApiError
from proxy.console.base.routes import Ask, Page, Route
from proxy.console.views.decision import RESOURCES, VERBS, Answer, Question, answer_of
from proxy.console.views.rows import sentence

# The question has a fault, and the form shows it.
_MISTYPED = frozenset({400, 404, 409, 422})


async def show(ask: Ask) -> Page:
    """Show the form, and the answer to a complete question."""
    question = Question.of(ask.request.query_params)
    answer: Answer | None = None
    fault, status = "", 200
    if question.complete:
        try:
            answer = answer_of(await ask.api.get("/v1/decision", **question.asked()))
        except ApiError as error:
            if error.status not in _MISTYPED:
                raise
            fault, status = sentence(str(error)), error.status
    elif ask.request.query_params:
        fault = "An agent, a cluster, a verb and a resource make a question."
    return Page(
        "decision.html",
        "Decision",
        {
            "question": question,
            "answer": answer,
            "fault": fault,
            "verbs": VERBS,
            "resources": RESOURCES,
        },
        status,
    )


ROUTES = (Route("GET", "/decision", "viewer", show, "decision"),)
