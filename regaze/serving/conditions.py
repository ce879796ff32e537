"""The interventions that a request names."""

from __future__ import annotations

import re

from regaze.evals.runs.conditions import Condition
from regaze.interventions import Intervention
from regaze.serving.errors import bad

_LONGEST = 4000


def read(text: str, param: str = "regaze") -> Condition:
    """Read ``none``, ``vhr:alpha=2`` or ``var+pai``; no file of the server is opened for it.

    Raises:
        ApiError: An unknown method or field (the message names the nearest), a method without a
            field that it needs, one that can't be attached to a language model, another image, or
            a value from a file.
    """
    if len(text) > _LONGEST:
        raise bad(f"an intervention has at most {_LONGEST} letters, this has {len(text)}", param)
    if re.search(r"=\s*@", text):
        raise bad("field=@FILE would read a file of the server: write the value itself", param)
    try:
        condition = Condition.parse(text)
        condition.check_given()
    except (ValueError, ImportError) as error:
        raise bad(" ".join(str(error).split()), param, "unknown_intervention") from error
    if condition.image != "given":
        raise bad(f"@{condition.image} is a control of `regaze eval`: send that image", param)
    for spec in condition.specs:
        if spec.acts_on != Intervention.acts_on:
            raise bad(
                f"{spec.name} acts on {spec.acts_on}, and this serves a language model", param
            )
        if spec.stage != "attention":
            raise bad(
                f"{spec.name} changes what is asked, not how the model attends, so it can't be "
                "attached for one request; `regaze eval` runs it",
                param,
            )
    return condition
