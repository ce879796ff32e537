"""The table of model families: a new entry is all it takes, and what isn't in it raises."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_census_lvlm as census
import torch
import transformers as hf
from asking import SHORT, ask, decoded, literally, logits
from census_lvlm import CHANGES, EVERY, PROMPT, bare_host, pictures, prompts, tiny_model
from matrix import EDITS, support_table
from tiny import Tiny, tiny
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from regaze.hooks import attach, capture
from regaze.hooks.caches import cache_name
from regaze.hooks.families import FAMILIES, Family
from regaze.hooks.grids import patch_grid
from regaze.hooks.host import find_host
from regaze.hooks.sites import find_sites
from regaze.interventions import PAI, VAF, VAR, VHR


class MadeUpConfig(hf.LlavaConfig):  # type: ignore[misc]
    """A family that nobody else has."""

    model_type = "made_up"


class MadeUpModel(hf.LlavaForConditionalGeneration):
    """The made-up family's model."""

    config_class = MadeUpConfig


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A family that transformers knows and the table doesn't."""
    CONFIG_MAPPING.register("made_up", MadeUpConfig)
    models: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    models.register(MadeUpConfig, MadeUpModel)
    try:
        yield "made_up"
    finally:
        CONFIG_MAPPING._extra_content.pop("made_up")
        models._extra_content.pop(MadeUpConfig)


def test_one_entry_and_one_tiny_config_are_a_family(
    made_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, made_up, Family(made_up, "Made-Up-VL", grid="square"))
    monkeypatch.setitem(CHANGES, made_up, {"text_config": {"num_key_value_heads": 1}})
    monkeypatch.setattr("matrix.EVERY", (*EVERY, made_up))
    census.test_every_method_equals_its_literal_form_or_says_why_not(made_up)
    assert "Made-Up-VL" in support_table()


def test_a_family_that_is_not_in_the_table_raises_and_says_what_to_do(made_up: str) -> None:
    model = tiny_model_unknown(made_up)
    with pytest.raises(ValueError, match="doesn't know the model type 'made_up'") as error:
        attach(model, PAI())
    assert "regaze verify" in str(error.value)
    assert 'unknown="check"' in str(error.value)
    with pytest.raises(ValueError, match="doesn't know the model type"):
        capture(model)
    with pytest.raises(ValueError, match='"raise" or "check"'):
        attach(model, PAI(), unknown="guess")  # type: ignore[arg-type]


def tiny_model_unknown(family: str) -> Any:
    return tiny_model(family).model


@torch.no_grad()
@pytest.mark.parametrize("name", ["pai", "vaf", "var", "vhr"])
def test_it_is_accepted_if_edits_are_exact_there(made_up: str, name: str) -> None:
    model, inputs = tiny_model_unknown(made_up), prompts(made_up, PROMPT)
    spec = census.spec_for(find_host(model, unknown="check"), EDITS[name])
    with attach(model, spec, unknown="check") as run:
        edited = model(**inputs).logits
    assert run.report().fired
    # The model is LLaVA's, so LLaVA's literal form is its own.
    twin = hf.LlavaForConditionalGeneration(hf.LlavaConfig(**without_type(model.config)))
    twin.load_state_dict(model.state_dict())
    alike = Tiny("llava", twin.eval(), tiny_model("llava").processor, 9)
    with literally(alike, inputs, run.specs):
        literal = twin(**inputs).logits
    torch.testing.assert_close(edited, literal, rtol=0, atol=1e-4 * float(literal.std()))


def test_it_is_accepted_where_products_are_rounded(made_up: str) -> None:
    model = tiny_model_unknown(made_up)
    torch.set_float32_matmul_precision("medium")
    try:
        with attach(model, PAI(layers=(0,)), unknown="check") as run:
            model(**prompts(made_up, PROMPT))
        assert run.report().fired
    finally:
        torch.set_float32_matmul_precision("highest")


def without_type(config: Any) -> dict[str, Any]:
    return {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures")}


def test_a_layer_that_attends_twice_is_not_accepted(made_up: str) -> None:
    model = tiny_model_unknown(made_up)
    attention = model.model.language_model.layers[2].self_attn
    forward = attention.forward

    def twice(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        forward(hidden_states, *args, **{**kwargs, cache_name(attention): None})
        return forward(hidden_states, *args, **kwargs)

    attention.forward = twice
    with pytest.raises(ValueError, match=r"once a pass in layers\.2\.self_attn"):
        attach(model, PAI(), unknown="check")


def leaning(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
    """Attention that adds a slope to each row of logits, as ALiBi does."""
    logits = query @ key.repeat_interleave(2, 1).mT * more["scaling"]
    logits = logits + 0.3 * torch.arange(key.shape[2]) + (0 if mask is None else mask)
    return (logits.softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2), None


def test_a_layer_that_adds_to_its_logits_is_not_accepted(
    made_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "leaning", leaning)
    eager = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "leaning", eager)
    model = tiny_model_unknown(made_up)
    model.model.language_model.config._attn_implementation_internal = "leaning"
    with pytest.raises(ValueError, match="its attention isn't the usual one"):
        attach(model, PAI(), unknown="check")


# -- grids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [f for f in EVERY if FAMILIES[f].grid == "thw"])
def test_families_that_are_given_grids_merge_patches(family: str) -> None:
    host = bare_host(family)
    config: Any = host.model.config
    assert "image_grid_thw" in inspect.signature(type(host.model).forward).parameters
    side = config.vision_config.spatial_merge_size
    size = torch.tensor([1, 3 * side, 4 * side])
    grid = patch_grid(config, 12, size)
    assert grid is not None
    assert grid.tolist() == torch.arange(12).reshape(3, 4).tolist()
    assert patch_grid(config, 12, None) is None
    assert patch_grid(config, 13, size) is None


def test_what_is_not_known_to_be_square_has_no_grid() -> None:
    for family in EVERY:
        kind, config = FAMILIES[family].grid, SimpleNamespace(model_type=family)
        if kind in ("square", "breaks", "unknown"):
            grid = patch_grid(config, 16, None)
            assert (grid is None) == (kind != "square")
    assert patch_grid(SimpleNamespace(model_type="made_up"), 16, None) is None
    rows = patch_grid(SimpleNamespace(model_type="mistral3"), 12, None, breaks=2)
    assert rows is not None and rows.shape == (3, 4)


# -- layers that attend ---------------------------------------------------------------------------


def test_default_layers_are_those_that_attend() -> None:
    host = find_host(tiny_model("qwen3_5").model)
    assert [site.layer for site in host.sites] == [3]
    assert PAI().resolve(host).layers == (3,)
    assert VAF().resolve(host).layers == (3,)
    assert VAR(sink_dims=(1,)).resolve(host).layers == (3,)
    assert VHR().resolve(host).layers == (3,)


def test_a_named_layer_that_does_not_attend_raises_and_names_those_that_do() -> None:
    model = tiny_model("lfm2_vl").model
    with pytest.raises(ValueError, match="layer 2 of this lfm2_vl has no attention.*: 1, 3"):
        attach(model, PAI(layers=(1, 2)))
    with pytest.raises(ValueError, match="layer 0 of this lfm2_vl has no attention"):
        capture(model, layers=[0])
    with pytest.raises(ValueError, match="holds 4, but this lfm2_vl has 4"):
        attach(model, PAI(layers=(4,)))


@torch.no_grad()
def test_the_report_says_how_many_layers_attend() -> None:
    model = tiny_model("qwen3_5")
    with attach(model.model, PAI()) as run:
        model.model(**prompts("qwen3_5", PROMPT))
    assert "(1 of 4 layers attend)" in str(run.report())
    assert run.report().interventions[0].note == "1 of 4 layers attend"
    with attach(tiny("llava").model, PAI()) as run:
        assert run.report().interventions[0].note == ""


@torch.no_grad()
def test_all_layers_that_attend_are_captured() -> None:
    model = tiny_model("lfm2_vl")
    with capture(model.model) as seen:
        model.model(**prompts("lfm2_vl", PROMPT))
    assert [found.layer for found in seen.captured] == [1, 3]


def test_layers_of_an_unknown_kind_raise() -> None:
    tower = tiny_model("llava").tower
    tower.config.layer_types = ["full_attention", "mystery_attention"] * 2
    with pytest.raises(ValueError, match="'mystery_attention'"):
        find_sites(tower)


def test_a_window_without_width_raises() -> None:
    tower = tiny_model("llava").tower
    tower.config.layer_types = ["full_attention", "sliding_attention"] * 2
    with pytest.raises(ValueError, match=r"layer 1 \(LlamaAttention\) is sliding"):
        find_sites(tower)


@pytest.mark.parametrize(
    ("family", "kinds", "keys"),
    [
        ("llama4", ["chunked"] * 3 + ["full"], [0, 1, 2, 3]),
        ("gemma4", ["sliding", "full"] * 2, [0, 1, 0, 1]),
        ("gemma3n", ["sliding", "full"] * 2, [0, 1, 0, 1]),
        ("qwen2_vl", ["full"] * 4, [0, 1, 2, 3]),
    ],
)
def test_sites_say_what_rows_see_and_whose_keys(
    family: str, kinds: list[str], keys: list[int]
) -> None:
    host = find_host(tiny_model(family).model)
    assert [site.kind for site in host.sites] == kinds
    assert [site.kv_layer for site in host.sites] == keys
    assert all((site.window == 64) == (site.kind != "full") for site in host.sites)
    assert all(site.shares_kv == (site.kv_layer < site.layer) for site in host.sites)
    assert host.attention(3) is host.tower.layers[3].self_attn  # type: ignore[index, union-attr]


# -- windows shorter than a prompt ----------------------------------------------------------------

WINDOWED = ("aya_vision", "cohere2_vision", "exaone4_5", "gemma4", "llama4", "muse_glimmer")


@pytest.mark.parametrize("family", WINDOWED)
def test_edits_within_short_windows_equal_their_literal_form(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sliding_window", "attention_chunk_size"):
        monkeypatch.setitem(census_numbers(), name, 12)
    model, inputs = tiny_model(family), prompts(family, PROMPT)
    host = find_host(model.model)
    assert {site.window for site in host.sites} == {12, None}
    with pictures(model):
        for name in ("pai", "vaf", "var", "vhr-mask"):
            with attach(model.model, census.spec_for(host, EDITS[name])) as run:
                edited = decoded(model, inputs)
            with literally(model, inputs, run.specs):
                literal = decoded(model, inputs)
            assert torch.equal(edited[1], literal[1]), name
            for part in (0, 2):
                off = (edited[part] - literal[part]).double().abs().max()
                assert off <= census.ROUNDING * literal[part].std(), name
        with (
            pytest.raises(NotImplementedError, match=r"\(12\)"),
            attach(model.model, VHR(layers=(3,))),
        ):
            model.model(**inputs)


@torch.no_grad()
def test_angles_that_depend_on_the_length_allow_no_shorter_prompt_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16}
    turns |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    monkeypatch.setitem(
        CHANGES, "llava", {"text_config": {"rope_parameters": turns, "head_dim": 8}}
    )
    model, inputs = tiny_model("llava"), prompts("llava", PROMPT)
    with (
        pytest.raises(NotImplementedError, match="more than 16 columns"),
        attach(model.model, VHR(layers=(1,))),
    ):
        model.model(**inputs)
    spec = VHR(layers=(1,), null_image="mask")
    with attach(model.model, spec) as run:
        edited = model.model(**inputs).logits
    with literally(model, inputs, run.specs):
        literal = model.model(**inputs).logits
    torch.testing.assert_close(edited, literal, rtol=0, atol=1e-4 * float(literal.std()))


@torch.no_grad()
def test_queries_scaled_by_their_column_allow_no_prompt_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"text_config": {"floor_scale": 20, "attn_temperature_tuning": True}}
    monkeypatch.setitem(CHANGES, "llama4", changes)
    model, inputs = tiny_model("llama4"), prompts("llama4", PROMPT)  # of 19 columns
    for null in ("drop", "mask"):
        with (
            pytest.raises(NotImplementedError, match="from column 19 on"),
            attach(model.model, VHR(layers=(3,), null_image=null)),  # type: ignore[arg-type]
        ):
            model.model(**inputs)


def census_numbers() -> dict[str, Any]:
    import census_lvlm

    return census_lvlm._TEXT


# -- what else people attach to -------------------------------------------------------------------


def test_wrappers_name_the_way_out() -> None:
    model = tiny("llava")
    with pytest.raises(TypeError, match=r"DataParallel.*target\.module"):
        attach(nn.DataParallel(model.model), PAI())
    with pytest.raises(TypeError, match="LlavaProcessor is a processor, not a model"):
        attach(model.processor, PAI())
    with pytest.raises(TypeError, match="is a processor, not a model"):
        attach(model.processor.tokenizer, PAI())
    with pytest.raises(TypeError, match="Linear is no transformers model") as error:
        attach(nn.Linear(2, 2), PAI())
    assert "target." not in str(error.value)
    holder = nn.ModuleDict({"head": nn.Linear(2, 2), "vlm": model.model})
    with pytest.raises(TypeError, match=r"the one that it holds, target\.vlm$"):
        attach(holder, PAI())


def test_the_model_inside_of_a_distributed_wrapper_is_attached_to(tmp_path: Path) -> None:
    model, inputs = tiny("llava"), ask(tiny("llava"), (SHORT, [0]))
    where: dict[str, Any] = {
        "init_method": f"file://{tmp_path / 'meeting'}",
        "rank": 0,
        "world_size": 1,
    }
    torch.distributed.init_process_group("gloo", **where)
    try:
        wrapper = nn.parallel.DistributedDataParallel(model.model)
        with pytest.raises(TypeError, match=r"attach to it, target\.module; calls of the wrapper"):
            attach(wrapper, PAI())
        spec = PAI(alpha=0.5, layers=(1, 2))
        with attach(wrapper.module, spec), torch.no_grad():
            assert torch.equal(wrapper(**inputs).logits, model.model(**inputs).logits)
            edited = wrapper(**inputs).logits
        assert not torch.equal(edited, logits(model, inputs))
    finally:
        torch.distributed.destroy_process_group()


@torch.no_grad()
def test_a_language_model_alone_needs_spans() -> None:
    model = tiny("llava", fresh=True)
    alone = model.tower
    with pytest.raises(ValueError, match=r"LlamaModel is a language model alone.*pass spans="):
        attach(alone, PAI())
    ids = torch.tensor([PROMPT])
    inside = VHR(layers=(1, 2)), PAI(layers=(1,))
    with attach(alone, *inside, spans={"image": [(4, 13)]}) as run:
        edited = alone(input_ids=ids).last_hidden_state
    assert run.report().fired
    assert (edited - alone(input_ids=ids).last_hidden_state).abs().max() > 0.01
