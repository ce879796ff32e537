"""A certificate tells right engines from wrong ones, on models of every kind."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from matrix import EDITS, usable
from methods import LAYERS
from tiny import tiny
from tiny_pipelines import FAMILIES, quiet
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import regaze
from regaze.evals.asking.models import Loaded, load
from regaze.evals.pictures import pipelines
from regaze.evals.verify import Certificate, Line
from regaze.evals.verify.certificate import PROMISES
from regaze.hooks import Columns, Edit, Host, Map, MapForm, dispatch
from regaze.hooks.attach import ModelAttachment
from regaze.interventions import PAG, PAI, VAR, VHR, Intervention, TidalDecode, get, names

LANGUAGE = ("prefill", "decode")
ROOT = Path(__file__).resolve().parents[2]


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


def failed(certificate: Certificate) -> set[str]:
    return {line.promise for line in certificate.failures}


# -- what is right passes ----------------------------------------------------------------------


def test_every_method_keeps_every_promise_on_the_sandbox_model(sandbox: Loaded) -> None:
    specs = every("vision-language models")
    certificate = regaze.verify(sandbox.model, *specs, processor=sandbox.processor)
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
    assert "4 of 6 layers" in certificate.of("fired", "vhr").detail


# Methods of video, those whose blocks have to be named, and one that needs a calibration.
_NEVER = {"bytheway", "enhance_a_video", "paro", "radial", "slg", "stg"}
REFUSED = {
    "painter-mmdit": _NEVER | {"primecomposer", "structured_diffusion", "tpg"},
    "painter-unet": _NEVER | {"consistedit"},
}


@pytest.mark.parametrize("name", ["painter-mmdit", "painter-unet"])
def test_every_method_keeps_every_promise_on_the_painters(name: str) -> None:
    loaded = pipelines.load(name)
    specs = every("diffusers pipelines")
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


# -- what can't be checked says why ------------------------------------------------------------


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


# -- what is wrong fails, at the right line ----------------------------------------------------


@dataclass(frozen=True)
class Toy(Intervention):
    """A method whose fused form each test gives; its formula subtracts 3 from image logits."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "look away"
    paper: ClassVar[str] = "none"
    on: bool = True

    def resolve(self, host: Host) -> Toy:
        return self

    def idle(self) -> Toy:
        return replace(self, on=False)

    def literal(self) -> MapForm:
        return MapForm(LAYERS, lambda z, m: torch.where(m.last & m.image, z - 3, z))

    def bind(self, host: Host) -> Edit:
        return ToyEdit(LAYERS if self.on else ())


class ToyEdit(Edit):
    rows = "last"

    def edit_logits(self, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return torch.where(columns.image, logits - 3, logits)


@pytest.fixture()
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Certificate]:
    """Verify the toy method with another fused form."""

    def verify(edit: Any) -> Certificate:
        model = tiny("llava")
        monkeypatch.setattr(ToyEdit, "edit_logits", edit)
        return regaze.verify(model.model, Toy(), processor=model.processor)

    return verify


def right(self: Any, layer: int, logits: Tensor, columns: Columns) -> Tensor:
    return torch.where(columns.image, logits - 3, logits)


def test_the_toy_is_right_as_it_is(wrong: Callable[[Any], Certificate]) -> None:
    certificate = wrong(right)
    assert certificate.passed and not certificate.failures, str(certificate)


def test_an_edit_that_is_not_applied(wrong: Callable[[Any], Certificate]) -> None:
    certificate = wrong(lambda self, layer, logits, columns: logits)
    assert failed(certificate) == {"fired", *LANGUAGE}


def test_an_edit_that_misses_decoding(wrong: Callable[[Any], Certificate]) -> None:
    read: list[int] = []

    def edit(self: Any, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        read.append(logits.shape[-1])
        prompt = logits.shape[-1] in (min(read), certificate_lengths[-1])
        return right(self, layer, logits, columns) if prompt else logits

    model = tiny("llava")
    from regaze.evals.verify.language import Language

    asked = Language(model.model, model.processor)._given
    certificate_lengths = [asked[0]["input_ids"].shape[1], asked[1]["input_ids"].shape[1]]
    certificate = wrong(edit)
    assert "decode" in failed(certificate)
    assert "prefill" not in failed(certificate)


def test_an_edit_of_another_strength(wrong: Callable[[Any], Certificate]) -> None:
    certificate = wrong(
        lambda self, layer, logits, columns: torch.where(columns.image, logits - 2.9, logits)
    )
    assert failed(certificate) == set(LANGUAGE)


def test_a_mask_that_is_lost_on_the_way(
    wrong: Callable[[Any], Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(right)  # Registers the engine's masks.
    known = ALL_MASK_ATTENTION_FUNCTIONS
    name = next(name for name in known.valid_keys() if name == dispatch.PREFIX + "sdpa")
    monkeypatch.setitem(known._global_mapping, name, lambda *args, **more: None)
    assert "batch" in failed(wrong(right))


def test_an_edit_that_reads_the_other_rows_columns(wrong: Callable[[Any], Certificate]) -> None:
    def edit(self: Any, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        return torch.where(columns.image[:1], logits - 3, logits)

    assert failed(wrong(edit)) == {"batch"}


def test_an_edit_that_depends_on_the_thread(wrong: Callable[[Any], Certificate]) -> None:
    def edit(self: Any, layer: int, logits: Tensor, columns: Columns) -> Tensor:
        here = threading.current_thread() is threading.main_thread()
        return right(self, layer, logits, columns) if here else logits

    assert failed(wrong(edit)) == {"threads"}


def test_an_idle_spec_that_acts(
    wrong: Callable[[Any], Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "idle", lambda self: self)
    assert failed(wrong(right)) == {"idle"}


def test_a_method_without_a_literal_form(
    wrong: Callable[[Any], Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "literal", Intervention.literal)
    certificate = wrong(right)
    assert {certificate.of(part).verdict for part in LANGUAGE} == {"skipped"}
    assert certificate.of("prefill").detail == "no literal form of toy"
    assert not certificate.failures


@pytest.mark.parametrize("left", ["hook", "weight", "attribute", "mode"])
def test_something_that_stays_after_detaching(
    left: str, wrong: Callable[[Any], Certificate], monkeypatch: pytest.MonkeyPatch
) -> None:
    detach, model = ModelAttachment.detach, tiny("llava").model
    weight = model.lm_head.weight.detach().clone()
    undo: list[Callable[[], Any]] = []

    def leave(self: ModelAttachment) -> None:
        detach(self)
        if undo:
            return
        if left == "hook":
            undo.append(model.register_forward_hook(lambda m, a, o: None).remove)
        elif left == "weight":
            model.lm_head.weight.data[0] += 1
            undo.append(lambda: model.lm_head.weight.data.copy_(weight))
        elif left == "attribute":
            model.lm_head.left = True
            undo.append(lambda: delattr(model.lm_head, "left"))
        else:
            mode: Any = torch.overrides.BaseTorchFunctionMode()
            mode.__enter__()
            undo.append(lambda: mode.__exit__(None, None, None))

    monkeypatch.setattr(ModelAttachment, "detach", leave)
    try:
        assert "undo" in failed(wrong(right))
    finally:
        for one in undo:
            one()


@pytest.fixture()
def biased() -> Iterator[Any]:
    """A model whose attention adds a bias that no mask shows."""
    name = "biased"

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any
    ) -> Any:
        bias = torch.linspace(0, 2, key.shape[2])
        mask = bias.expand(1, 1, query.shape[2], -1) + (0 if mask is None else mask)
        eager = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return eager(module, query, key, value, mask, **more)

    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model = tiny("llava", fresh=True)
    model.model.config.text_config._attn_implementation = name
    yield model
    for known in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        known._local_mapping.pop(name, None)  # type: ignore[attr-defined]


def test_attention_with_an_unknown_bias(biased: Any) -> None:
    certificate = regaze.verify(biased.model, EDITS["pai"].acts, processor=biased.processor)
    assert certificate.of("maps").verdict == "failed"
    assert not certificate.passed


def test_guidance_by_another_perturbation(monkeypatch: pytest.MonkeyPatch) -> None:
    from regaze.interventions.diffusion import pag

    kind = FAMILIES["sd3"]
    monkeypatch.setattr(pag, "_alone", lambda call: 1.01 * call.value)
    certificate = regaze.verify(
        quiet(kind.build()), PAG(layers=kind.perturb), call=kind.call(2, True)
    )
    assert "steps" in failed(certificate) and "fired" not in failed(certificate)


# -- the certificate ---------------------------------------------------------------------------


def test_a_certificate_is_saved_and_read_again(sandbox: Loaded, tmp_path: Path) -> None:
    identity = sandbox.identity
    made = regaze.verify(
        sandbox.model, PAI(), VAR(), processor=sandbox.processor, identity=identity
    )
    made.save(tmp_path / "c.json")
    read = Certificate.load(tmp_path / "c.json")
    assert read.to_dict() == made.to_dict()
    assert read.model["identity"] == identity
    assert read.only("pai").methods == ["pai"]
    assert read.of("maps").method == ""
    with pytest.raises(KeyError, match="vhr"):
        read.only("vhr")


def test_numbers_that_are_not_finite_stay_out_of_the_file() -> None:
    line = Line("x", "prefill", "failed", "differs by nan", float("nan"), 1e-4)
    made = Certificate({}, "", (line,), {}, 1.0)
    assert not made.passed
    found = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert found["lines"][0]["difference"] is None


def test_nothing_proved_is_not_passed() -> None:
    assert not Certificate({}, "", (Line("x", "prefill", "skipped"),), {}, 1.0).passed
    with pytest.raises(ValueError, match="unknown promise"):
        Line("x", "prefil", "passed")
    assert all(Line("x", promise, "passed").says for promise in PROMISES)


@pytest.mark.parametrize("text", ["[]", "{}", '{"lines": [{"method": 1}]}', "{"])
def test_other_files_are_no_certificates(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"certificate|valid JSON"):
        Certificate.load(path)


# -- literal forms -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in names() if get(n).stage == "attention"])
def test_every_method_has_a_literal_form_and_a_strength(name: str) -> None:
    cls = get(name)
    assert cls.literal is not Intervention.literal
    idle = cls().idle()
    if name == "dola":  # A contrast of the model with itself, without a factor.
        assert idle is None
    else:
        assert isinstance(idle, cls) and idle == idle.idle()


@pytest.mark.parametrize(
    "path", sorted(str(path.relative_to(ROOT)) for path in (ROOT / "hooks").rglob("literal*.py"))
)
def test_literal_forms_run_without_the_engine(path: str) -> None:
    engine = ("attention", "rows", "kernel", "null_prompt", "seat", "perturb", "fork", "attach")
    found = [
        node.module or ""
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
    ]
    assert not [name for name in found if name.rpartition(".")[2] in engine]


def test_a_map_form_sees_what_the_columns_are() -> None:
    model = tiny("llava")
    seen: list[Map] = []
    form = MapForm((0,), lambda z, m: seen.append(m) or z)  # type: ignore[func-returns-value]
    from asking import SHORT, ask

    from regaze.hooks.host import find_host
    from regaze.hooks.literal_runs import literally

    inputs = ask(model, (SHORT, [0]))
    with literally(find_host(model.model), inputs, [form]), torch.no_grad():
        model.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    first, then = seen[0], seen[-1]
    columns = model.expected_image_columns(inputs)[0]
    assert torch.equal(first.image.flatten(), columns)
    assert first.last.flatten().nonzero().tolist() == [[len(columns) - 1]]
    assert first.seen[0, 0].tril().equal(first.seen[0, 0])
    assert then.image.shape[-1] == len(columns) + 1 and not then.prompt.flatten()[-1]
    assert then.text.all() and then.last.all()
