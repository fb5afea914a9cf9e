"""Notation: interventions as JSON, read back equal."""

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from transpector.state.errors import InterventionError
from transpector.state.interventions import Ablate, Freeze, Intervention, Patch, Question, Scale, Set, Skip
from transpector.state.sites import Site
from transpector.state.steering import Difference, Direction, Steer, TokenVector, Vector

_VERBS: dict[str, type[Intervention]] = {
    cls.verb: cls for cls in (Ablate, Freeze, Patch, Scale, Set, Skip, Steer)
}
_DIRECTIONS: dict[str, type[Direction]] = {
    "difference": Difference,
    "token": TokenVector,
    "vector": Vector,
}


def to_json(interventions: Iterable[Intervention]) -> str:
    """Print interventions as a JSON list, which :func:`from_json` reads back equal."""
    return json.dumps([_plain(i) for i in interventions], ensure_ascii=False)


def from_json(text: str) -> tuple[Intervention, ...]:
    """Read interventions from JSON; raises InterventionError, or SiteError for a site."""
    try:
        rows = json.loads(text)
        return tuple(_intervention(row) for row in rows)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InterventionError(
            f"These are no interventions: {error}. Expected a JSON list as Transpector saves it."
        ) from error


def _plain(intervention: Intervention) -> dict[str, Any]:
    row: dict[str, Any] = {"do": intervention.verb}
    for part in fields(intervention):
        value = getattr(intervention, part.name)
        if isinstance(value, Site):
            value = str(value)
        elif isinstance(value, Question):
            value = {
                "token_ids": list(value.token_ids),
                "interventions": [_plain(i) for i in value.interventions],
                "bos": value.bos,
            }
        elif isinstance(value, Direction):
            kind = next(kind for kind, cls in _DIRECTIONS.items() if isinstance(value, cls))
            value = {"from": kind, **{each.name: getattr(value, each.name) for each in fields(value)}}
        row[part.name] = value
    return row


def _intervention(row: dict[str, Any]) -> Intervention:
    row = dict(row)
    cls = _VERBS[row.pop("do")]
    if row.get("held"):
        held = row["held"]
        row["held"] = Question(
            held["token_ids"], tuple(_intervention(i) for i in held["interventions"]), held["bos"]
        )
    if "direction" in row:
        direction = dict(row["direction"])
        row["direction"] = _DIRECTIONS[direction.pop("from")](**direction)
    return cls(**row)
