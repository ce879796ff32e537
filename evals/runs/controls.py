"""Controls: what a table would show if a method's reason for working were wrong.

The unedited model with another item's image, and with a blank one, say what it answers from its
prior alone. Random heads, bottom heads or a flipped sign (`Intervention.controls`) say how far any
edit of that size would go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from regaze.evals.runs.conditions import Condition, Shown, methods_in

_IMAGES: Mapping[Shown, str] = {"wrong": "wrong image", "blank": "blank image"}


def controls(conditions: Sequence[Condition]) -> dict[Condition, str]:
    """The controls of what is compared, and what each one is.

    Where several interventions are combined, one at a time is replaced by its control.

    Args:
        conditions: The conditions to compare; the unedited model may be among them.
    """
    found = {Condition(image=image): name for image, name in _IMAGES.items()}
    for condition in conditions:
        for place, spec in enumerate(condition.specs):
            for name, control in spec.controls().items():
                specs = (*condition.specs[:place], control, *condition.specs[place + 1 :])
                found.setdefault(Condition(specs, condition.image), name)
    return found


def with_controls(conditions: Sequence[Condition]) -> list[Condition]:
    """The conditions, and after them those of their controls that aren't among them."""
    return list(dict.fromkeys([*conditions, *controls(conditions)]))


def roles(labels: Sequence[str]) -> dict[str, str]:
    """The conditions of a run that are controls of others in it, and what each one is.

    Args:
        labels: The conditions' labels. A label that can't be read, because its method isn't
            registered here, is taken for something to compare.
    """
    named = {label: methods_in(label) for label in labels}
    found = {label: _IMAGES[shown] for label, (_, shown) in named.items() if shown in _IMAGES}
    # A control is of the same method as what it controls. So a method that stands alone has none,
    # and need not be imported.
    often = Counter(methods for methods, _ in named.values())
    conditions: dict[Condition, str] = {}
    for label, (methods, _) in named.items():
        if methods and often[methods] > 1:
            try:
                conditions[Condition.parse(label)] = label
            except ValueError:
                continue
    for control, name in controls(list(conditions)).items():
        if control in conditions:
            found.setdefault(conditions[control], name)
    return {label: found[label] for label in labels if label in found}
