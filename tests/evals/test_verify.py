"""A certificate proves right engines, on models of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matrix import EDITS, usable
from tiny import tiny
from tiny_pipelines import FAMILIES, quiet

import regaze
from regaze.evals.asking.models import Loaded, load
from regaze.evals.pictures import pipelines
from regaze.evals.verify import Certificate, language
from regaze.evals.verify import pipelines as subjects
from regaze.interventions import (
    PAG,
    PAI,
    VHR,
    AttendAndExcite,
    Intervention,
    TidalDecode,
    get,
    names,
)

LANGUAGE = ("prefill", "decode")


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no times: no test here depends on them."""
    for module in (language, subjects):
        monkeypatch.setattr(module, "median", lambda once: 1.0)


@pytest.fixture(scope="module")
def sandbox() -> Loaded:
    return load("sandbox")


def every(kind: str) -> list[Intervention]:
    # Tools do nothing by default.
    methods = [n for n in names(kind) if not get(n).paper.startswith("none: a tool")]
    return [usable(name) for name in methods if get(name).stage == "attention"]


def verdicts(certificate: Certificate, method: str | None = None) -> dict[str, str]:
    """Each promise's verdict about one method."""
    label = method or certificate.methods[0]
    return {x.promise: x.verdict for x in certificate.lines if x.method in ("", label)}


# What a model with random weights doesn't have: sinks among its dimensions, and heads that look.
TRAINED = ("ilvad", "var")


def test_tolerances_are_those_of_what_products_are_rounded_to() -> None:
    model = tiny("llava")
    subject = language.Language(model.model, model.processor)
    exact = subject.tolerance
    torch.set_float32_matmul_precision("high")
    try:
        assert subject.tolerance == 2e-2 > exact
    finally:
        torch.set_float32_matmul_precision("highest")
    assert subject.tolerance == exact


@pytest.mark.parametrize("model", ["random", "sandbox"])
def test_every_method_keeps_every_promise_on_a_language_model(sandbox: Loaded, model: str) -> None:
    target: Any = tiny("llava") if model == "random" else sandbox
    specs = every("vision-language models")
    named = {"vhr", *TRAINED}
    specs = [s for s in specs if (s.name in named if model == "sandbox" else s.name not in TRAINED)]
    certificate = regaze.verify(target.model, *specs, processor=target.processor)
    assert certificate.passed, str(certificate)
    assert certificate.methods == [spec.label for spec in specs]
    for spec in specs:
        found = verdicts(certificate, spec.label)
        assert found.pop("cost") == "info"
        assert set(found) == {"maps", "fired", *LANGUAGE, "batch", "idle", "undo", "threads"}
        if spec.name == "tidal":  # It changes decoding alone.
            assert found.pop("prefill") == "skipped"
        if spec.name == "dola":  # It has no strength.
            assert found.pop("idle") == "skipped"
        assert set(found.values()) == {"passed"}, str(certificate)
    line = certificate.of("prefill", "vhr")
    assert line.difference is not None and line.tolerance == 1e-4
    assert 0 < line.difference < 1e-4
    layers = "4 of 6 layers" if model == "sandbox" else "2 of 3 layers"
    assert layers in certificate.of("fired", "vhr").detail


# Methods of video, those whose blocks have to be named, and one that needs a calibration.
_NEVER = {"bytheway", "enhance_a_video", "paro", "radial", "slg", "stg"}


REFUSED = {
    "painter-mmdit": _NEVER | {"primecomposer", "structured_diffusion", "tpg"},
    "painter-unet": _NEVER | {"consistedit"},
}


@pytest.mark.parametrize("name", ["painter-mmdit", "painter-unet"])
def test_every_method_keeps_every_promise_on_a_painter(name: str) -> None:
    loaded = pipelines.load(name)
    specs = every("diffusers pipelines")
    # Twenty refinements a step take longer than all other methods together.
    specs = [AttendAndExcite(refinements=2) if s.name == "attend_and_excite" else s for s in specs]
    if name == "painter-unet":  # Those that the other painter refuses, and one that it doesn't.
        specs = [s for s in specs if s.name in {"pag", "consistedit", *REFUSED["painter-mmdit"]}]
    certificate = regaze.verify(
        loaded.pipeline, *specs, call={**loaded.arguments, "num_inference_steps": 2}
    )
    assert certificate.passed, str(certificate)
    for spec in specs:
        found = verdicts(certificate, spec.label)
        fired = certificate.of("fired", spec.label)
        if spec.name in REFUSED[name]:
            assert found == {"fired": "skipped"} and "refused on this model" in fired.detail
            continue
        assert found.pop("cost") == "info"
        alone = spec.name in ("flow_warp", "consistedit")  # They have a batch of their own.
        assert found.pop("batch") == ("skipped" if alone else "passed")
        assert found.pop("fired") == found.pop("steps") == "passed", str(certificate)
        assert found == dict.fromkeys(("idle", "undo", "threads"), "passed"), str(certificate)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl", "mistral3", "paligemma"])
def test_tiny_families(family: str) -> None:
    model = tiny(family)
    specs = [EDITS[i].acts for i in ("pai", "vaf", "var", "vhr-mask")]
    certificate = regaze.verify(model.model, *specs, processor=model.processor)
    assert not certificate.failures, str(certificate)
    for spec in specs:
        found = verdicts(certificate, spec.label)
        assert {found[part] for part in ("fired", *LANGUAGE)} == {"passed"}, str(certificate)


@pytest.mark.parametrize("family", ["sd", "sd3", "flux", "pixart", "wan"])
def test_tiny_pipelines(family: str) -> None:
    kind = FAMILIES[family]
    pipe = quiet(kind.build())
    certificate = regaze.verify(
        pipe, PAG(layers=kind.perturb), call={**kind.call(2, True), "num_inference_steps": 2}
    )
    assert not certificate.failures, str(certificate)
    found = verdicts(certificate)
    assert (found["fired"], found["steps"], found["undo"]) == ("passed",) * 3
    assert certificate.of("batch").detail == "the pipeline's inputs were given as embeddings"


def test_without_a_processor_prompts_are_made_up(sandbox: Loaded) -> None:
    certificate = regaze.verify(sandbox.model, PAI(), VHR())
    assert certificate.passed, str(certificate)
    assert "made-up ids" in certificate.inputs


def test_methods_are_verified_together() -> None:
    model = tiny("llava")
    stack = [EDITS[name].acts for name in ("var", "pai")]
    certificate = regaze.verify(model.model, stack, processor=model.processor)
    assert certificate.methods == ["+".join(spec.label for spec in stack)]
    assert certificate.passed, str(certificate)


def test_the_model_is_left_as_it_was(sandbox: Loaded) -> None:
    before = sandbox.model.config.text_config._attn_implementation
    hooks = sum(len(m._forward_pre_hooks) for m in sandbox.model.modules())
    regaze.verify(sandbox.model, PAI(), processor=sandbox.processor)
    assert sandbox.model.config.text_config._attn_implementation == before
    assert sum(len(m._forward_pre_hooks) for m in sandbox.model.modules()) == hooks


def test_a_method_whose_effect_is_within_rounding_is_not_proved(sandbox: Loaded) -> None:
    certificate = regaze.verify(sandbox.model, PAI(alpha=1e-6), processor=sandbox.processor)
    line = certificate.of("prefill")
    assert line.verdict == "skipped"
    assert line.detail.endswith("can't tell from nothing; verify it with a greater strength")


def test_a_method_that_is_off_or_has_nothing_to_do_says_so(sandbox: Loaded) -> None:
    off, never = PAI(alpha=0), TidalDecode()  # These prompts are shorter than its budget.
    certificate = regaze.verify(sandbox.model, off, never, processor=sandbox.processor)
    assert certificate.of("fired", off.label).detail == "off by its own settings"
    assert "hold nowhere in these inputs" in certificate.of("fired", never.label).detail
    assert {certificate.of(part, never.label).detail for part in LANGUAGE} == {"nothing to compare"}
    assert not certificate.failures


def test_a_method_that_refuses_a_model_is_reported_with_its_reason() -> None:
    model = tiny("gemma3")
    certificate = regaze.verify(model.model, EDITS["vhr"].acts, processor=model.processor)
    line = certificate.of("fired")
    assert line.verdict == "skipped" and 'null_image="mask"' in line.detail


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ((), "nothing to verify"),
        ((regaze.CARVE(),), "carve edits no attention"),
        ((PAG(),), "pag acts on diffusers pipelines"),
    ],
)
def test_what_makes_no_sense_raises(sandbox: Loaded, specs: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        regaze.verify(sandbox.model, *specs, processor=sandbox.processor)


@pytest.mark.parametrize("spec", ["vhr", VHR, None, ["vhr"]])
def test_what_is_no_spec_raises(sandbox: Loaded, spec: Any) -> None:
    with pytest.raises(TypeError, match="verify takes specs such as VHR"):
        regaze.verify(sandbox.model, spec, processor=sandbox.processor)


def test_a_bare_denoiser_is_asked_for_its_pipeline() -> None:
    with pytest.raises(ValueError, match="whole pipeline"):
        regaze.verify(FAMILIES["sd"].build().unet, PAG())
