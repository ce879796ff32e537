"""A calibration of PAROAttention: resumable, identity-checked, and what it leaves is attached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_painter
import torch
from safetensors.torch import load_file

import regaze
from regaze.evals.pictures.paro import PLAN, calibrate
from regaze.evals.pictures.render import Painter, Shot
from regaze.evals.runs.store import ConfigMismatchError
from regaze.interventions.diffusion.paro_plan import packed, read
from regaze.interventions.diffusion.paro_survey import Rule, best_blocks

SHOTS = [Shot("a red circle", 0), Shot("a blue cross", 1)]
RULE = Rule(size=4, density=0.5, small=0.02, share=0.5)


def run(out: Path, rule: Rule = RULE, **more: Any) -> Any:
    given = {"arguments": tiny_painter.CALL, **more}
    return calibrate(tiny_painter.shared(), SHOTS, rule, out=out, **given)


def test_a_calibration_that_was_stopped_goes_on_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole")
    painted = 0
    stock = Painter.paint

    def paint(self: Painter, shots: Any) -> Any:
        nonlocal painted
        painted += 1
        if painted == 4:
            raise RuntimeError("killed")
        return stock(self, shots)

    monkeypatch.setattr(Painter, "paint", paint)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "parts")
    assert sorted(one.name for one in (tmp_path / "parts").glob("*.safetensors")) == [
        "blocks-000.safetensors", "orders-000.safetensors", "orders-001.safetensors"
    ]  # fmt: skip
    again = run(tmp_path / "parts")
    assert painted == 5
    assert (tmp_path / "parts" / PLAN).read_bytes() == (tmp_path / "whole" / PLAN).read_bytes()
    assert again.orders == whole.orders and again.steps == read(tmp_path / "whole" / PLAN).steps
    # Means over prompts decide, not the last one.
    found = [load_file(tmp_path / "whole" / f"blocks-00{n}.safetensors") for n in (0, 1)]
    for name, mask in again.masks.items():
        mean = torch.stack([one[name] for one in found]).mean(0)
        want = torch.stack([best_blocks(group, RULE.density) for group in mean])
        assert torch.equal(mask, packed(want))


def test_other_settings_and_damaged_parts_raise(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ConfigMismatchError):
        run(tmp_path, replace(RULE, density=0.3))
    (tmp_path / "orders-000.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="orders-000.safetensors is damaged"):
        run(tmp_path)
    with pytest.raises(ValueError, match="don't fill a block of 4096"):
        run(tmp_path / "large", replace(RULE, size=4096))


def test_what_it_leaves_is_attached(tmp_path: Path) -> None:
    plan = run(tmp_path, layers=(1,))
    assert len(plan.orders) == 1 and plan.groups == len(plan.masks[next(iter(plan.masks))])
    loaded = tiny_painter.shared()
    with regaze.attach(loaded.pipeline, regaze.PARO(plan=str(tmp_path / PLAN))) as attached:
        Painter(loaded.pipeline, tiny_painter.CALL).paint(SHOTS[:1])
    (report,) = attached.report().interventions
    assert report.fired and [layer.layer for layer in report.layers] == [1]
