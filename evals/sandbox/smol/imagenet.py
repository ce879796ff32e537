"""Classes of ImageNet that show the kinds of the world, and features of photographs made of them.

A linear classifier's weight row is the direction in which a cell's features grow where that class
is seen. So a background's features moved along such a row stand for a photograph of that class
(pseudo-features), and the projector learns to read photographs without a single one.

A batch norm's weight and bias are the deviation and the mean, over ImageNet's photographs, of what
it gives. So cells that show nothing in particular can be drawn from the tower's last norms.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

CLASSES: dict[str, tuple[int, ...]] = {
    "dog": tuple(range(151, 269)),
    "cat": tuple(range(281, 286)),
    "horse": (339,),
    "sheep": (348, 349),
    "cow": (345, 346, 347),
    "pig": (341, 342),
    "elephant": (101, 385, 386),
    "bear": (294, 295, 296, 297),
    "zebra": (340,),
    "lion": (291,),
    "rabbit": (330, 331, 332),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 145), 146),
    "penguin": (145,),
    "fish": (0, 1, 389, 391, 392, 393, 394, 395, 396, 397),
    "apple": (948,),
    "orange": (950,),
    "banana": (954,),
    "strawberry": (949,),
    "pineapple": (953,),
    "broccoli": (937,),
    "mushroom": (947, 991, 992, 993, 994, 996, 997),
    "pizza": (963,),
    "cup": (504, 967, 968),
    "bottle": (440, 720, 737, 898, 907),
    "chair": (423, 559, 765, 857),
    "couch": (831,),
    "bed": (520, 564),
    "toilet": (861,),
    "tv": (664, 782, 851),
    "laptop": (527, 620, 681),
    "keyboard": (508,),
    "cell phone": (487,),
    "clock": (409, 530, 892),
    "umbrella": (879,),
    "book": (917, 921),
    "backpack": (414,),
    "teddy bear": (850,),
    "ball": (429, 430, 574, 722, 768, 805, 852, 890),
    "guitar": (402, 546),
    "flower": (985, 986),
    "car": (436, 468, 511, 609, 627, 656, 661, 751, 817),
    "bus": (654, 779, 874),
    "truck": (555, 569, 675, 717, 864, 867),
    "train": (466, 547, 705, 820, 829),
    "airplane": (404, 895),
    "boat": (472, 484, 510, 554, 625, 628, 724, 780, 814, 871, 914),
    "bicycle": (444, 671),
    "motorcycle": (665, 670),
    "traffic light": (920,),
    "stop sign": (919,),
}
"""Class numbers of ILSVRC 2012 by kind; giraffe, carrot, donut, cake and scissors have none."""

OTHERS = tuple(sorted(set(range(1000)) - {n for held in CLASSES.values() for n in held}))
"""Classes that show none of the kinds."""

_LARGEST = 6.0  # of a feature: the tower ends in a ReLU6


def pseudo(background: Tensor, rows: Tensor, strength: Tensor) -> Tensor:
    """Features of cells that show classes, made of cells that show nothing.

    Args:
        background: ``(n, 1280)``.
        rows: ``(n, m, 1280)``, the classifier's weight rows of the m classes in each cell.
        strength: ``(n, m)``, how far along each row of unit length.

    Returns:
        ``(n, 1280)``, from 0 to 6 as the tower's own.
    """
    unit = torch.nn.functional.normalize(rows, dim=-1)
    return (background + (strength[..., None] * unit).sum(1)).clamp(0.0, _LARGEST)


def remembered(weights: Mapping[str, Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Features of cells of photographs, as the tower's norms remember them.

    What enters its last layer is drawn by the norm before it, channel by channel; that layer then
    makes features of it, as of a photograph.

    Args:
        weights: The tower's, as its package names them.
        count: Number of cells.
        generator: The source of randomness.

    Returns:
        ``(count, 1280)``, from 0 to 6.
    """
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("_blocks."))
    before = f"_blocks.{last}._bn2"
    mean, deviation = weights[f"{before}.bias"], weights[f"{before}.weight"].abs()
    entering = mean + deviation * torch.randn(count, len(mean), generator=generator)
    given = entering @ weights["_conv_head.weight"].flatten(1).T
    given = torch.nn.functional.batch_norm(
        given,
        weights["_bn1.running_mean"],
        weights["_bn1.running_var"],
        weights["_bn1.weight"],
        weights["_bn1.bias"],
        eps=1e-3,
    )
    return given.clamp(0.0, _LARGEST)
