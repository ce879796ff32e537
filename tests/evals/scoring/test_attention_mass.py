"""VAS: its formula on known numbers, and on a model against whole maps."""

from __future__ import annotations

import json
import math

import pytest
import torch
from asking import LONG, SHORT, ask
from tiny import tiny
from typer.testing import CliRunner

from regaze.cli.commands import app
from regaze.evals.scoring.attention_mass import masses, measure_vas, score
from regaze.hooks import attach
from regaze.interventions import AVAR


def test_it_is_the_mean_of_ratios_and_not_the_ratio_of_means() -> None:
    image = {0: torch.tensor([[0.8, 0.2]]), 3: torch.tensor([[0.4, 0.4]])}
    system = {0: torch.tensor([[0.1, 0.4]]), 3: torch.tensor([[0.2, 0.1]])}
    found = score(image, system)
    assert found.score == pytest.approx((8 + 0.5 + 2 + 4) / 4)
    assert found.log_mean == pytest.approx(math.log(8 * 0.5 * 2 * 4) / 4)
    assert found.image == pytest.approx(0.45)
    assert found.system == pytest.approx(0.2)
    assert found.layers == {0: pytest.approx(4.25), 3: pytest.approx(3.0)}
    assert found.rows == 2


def test_a_mass_that_vanishes_is_finite_and_none_at_all_raises() -> None:
    zero = {0: torch.zeros(1, 2)}
    found = score({0: torch.ones(1, 2)}, {0: torch.tensor([[0.0, 1.0]])})
    assert math.isfinite(found.score) and math.isfinite(found.log_mean)
    with pytest.raises(ValueError, match="text before its image"):
        score({0: torch.ones(1, 2)}, zero)
    with pytest.raises(ValueError, match="no question rows"):
        score({}, {})


@torch.no_grad()
def test_a_model_is_measured_as_its_maps_say_in_batches_too() -> None:
    model = tiny("qwen2_vl", attn_implementation="eager")
    batches = [ask(model, (SHORT, [0])), ask(model, (LONG, [1]))]
    image: dict[int, list[torch.Tensor]] = {}
    system: dict[int, list[torch.Tensor]] = {}
    for inputs in batches:
        on = model.expected_image_columns(inputs)[0]
        first, last = int(on.nonzero().min()), int(on.nonzero().max())
        before = torch.arange(len(on)) < first
        for layer, maps in enumerate(model.model(**inputs, output_attentions=True).attentions):
            seen, spoken = masses(maps[0, :, last + 1 :], on, before)
            image.setdefault(layer, []).append(seen)
            system.setdefault(layer, []).append(spoken)
    want = score(*({k: torch.cat(v, -1) for k, v in one.items()} for one in (image, system)))
    for prompts in (batches, [ask(model, (SHORT, [0]), (LONG, [1]))]):
        found = measure_vas(model.model, prompts)
        assert found.score == pytest.approx(want.score, rel=1e-3)
        assert found.log_mean == pytest.approx(want.log_mean, rel=1e-3)
        assert found.rows == want.rows
    with attach(model.model, AVAR(image=0.5, system=0.8)):
        assert measure_vas(model.model, batches).log_mean > want.log_mean
    with pytest.raises(ValueError, match="no question rows"):
        measure_vas(model.model, [ask(model, (SHORT, []))])
    with pytest.raises(ValueError, match="no image columns"):
        measure_vas(tiny("instructblip").model, [])


def test_the_command_measures_a_model_with_and_without_a_method() -> None:
    found = []
    for more in ([], ["--with", "avar:image=1"]):
        made = CliRunner().invoke(app, ["measure", "vas", "--limit", "2", "--json", *more])
        assert made.exit_code == 0, made.output
        found.append(json.loads(made.stdout))
    assert found[0]["prompts"] == 2 and len(found[0]["layers"]) == 6
    assert found[1]["score"] != found[0]["score"]
