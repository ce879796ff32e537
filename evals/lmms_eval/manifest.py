"""The manifest by which lmms-eval learns of ``regaze_hf``: the target of its entry point group."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The model's names and classes, as an ``lmms_eval.models.registry_v2.ModelManifest``."""
    # Only lmms-eval itself calls this.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="regaze_hf",
        simple_class_path="regaze.evals.lmms_eval.model.RegazeHf",
        chat_class_path="regaze.evals.lmms_eval.model.RegazeHfChat",
    )
