"""What a reader made of the tables of `columns_page`: written about one stored run."""

from __future__ import annotations

from collections.abc import Mapping

READ_OF: Mapping[str, int] = {
    "scenes": 64,
    "limit": 192,
    "validation": 16,
    "trials": 6,
    "twin": 32,
    "captions": 16,
}
"""Sizes of the run that was read."""
READINGS: Mapping[str, str] = {
    "adaptvis": (
        "does nothing that shows: the model is sure of nearly all answers, so attention to the image "
        "is sharpened, which raises the margin of what is there by 0.4 and flips two answers of 384."
    ),
    "adhh": (
        "does next to nothing on four heads of 270 (found on 16 validation captions): the margin "
        "falls by 0.2 whatever is asked about, a slight move of the threshold towards no."
    ),
    "avar": (
        "hurts by moving the threshold: its effect is the largest of those on attention (0.40), and "
        "margins of what isn't there rise by 2 to 4, those of what is there fall. On photographs, "
        "where the model says yes too rarely, the same push looks like a gain in accuracy; the AUC "
        "doesn't move on either."
    ),
    "avisc": (
        "hurts a little, through few questions: see `vcd`. Its contrast raises absent kinds too "
        "(+0.7 where it decides anything)."
    ),
    "carve": (
        "hurts most. It shows 60 % of the picture on average, stretched, and the margin of what is "
        "there falls by 10, of partners by 3. The maps it crops by are read off layers that look at "
        "the image with 5 to 10 % of their attention."
    ),
    "devils": (
        "does nothing that shows: the effect in 13 layers is 0.20, but the margins of all groups "
        "rise alike, by 0.1 to 0.2."
    ),
    "dola": (
        "hurts a little: where its cut leaves both words (11 % of the questions) the early exit "
        "takes yes down. See `vcd` for the AUC."
    ),
    "gift": (
        "does nothing that shows. It works against itself: what is there loses 0.8 and what isn't "
        "gains 0.4, too little to flip answers, enough for half a point of AUC."
    ),
    "highlight": (
        "moves the threshold: attending to the whole image raises every margin, by 3.3 where the "
        "object is there, by 2.5 for partners, by 1.6 for others. More yes to what is there is paid "
        "for with 22 points more yes to partners."
    ),
    "icd": (
        "moves the threshold towards yes (+1.9 whatever is asked about, where its cut leaves a "
        "choice). See `vcd` for the AUC."
    ),
    "ilvad": (
        "flattens: what is there loses 2.7, other kinds gain 0.9, and 7 % of the answers run on past "
        "their end."
    ),
    "m3id": (
        "does nothing: answers are a word long, and its weight grows with the length (margins rise "
        "by 0.1). Its claim is about captions."
    ),
    "pai": (
        "does nothing that shows: 0.2 more of what is little. The last row has some 8 % of its "
        "attention on the image, the effect is 0.05 at most, margins move by 0.1. Tuning finds "
        "nothing either."
    ),
    "scalingvis": (
        "does nothing that shows: an effect of 0.17 in 30 layers, margins of what is there fall by "
        "0.4, of what isn't rise by 0.1."
    ),
    "spin": (
        "moves the threshold a little: silencing a tenth of the heads raises margins of what isn't "
        "there by 0.8 to 1.0, of what is there by 0.4."
    ),
    "vaf": (
        "moves the threshold: yes to what is there rises from 91 to 98 %, to partners from 36 to "
        "49 %, to others from 5 to 12 %, at an unchanged AUC. Chosen by AUC, tuning takes all layers "
        "and lands at 82 % yes: that setting is worse."
    ),
    "vcd": (
        "hurts a little. Its plausibility cut (beta 0.1) rules one of the two words out in 89 % of "
        "the questions, so the contrast decides only the rest, where it raises absent kinds. **The "
        "fall of the AUC by 6 points is of that making, in all contrasts (`avisc`, `dola`, `icd`, "
        "`m3id`): questions that are cut tie.** Tuned to a sixth of the strength it does nothing."
    ),
    "vhr": (
        "hurts. Doubling half of the heads in 14 layers flattens the margins (what is there loses "
        "3.3, other kinds gain 1.8) and breaks the text: 54 % of the answers go on after the word, "
        "33 % at a strength of 1.88, which tuning chose."
    ),
    "vicrop": (
        "crops nothing here: its window is as large as the picture (224 pixels), so it shows the "
        "picture twice and reports that it never acted. On larger photographs it does crop, and is "
        "the one method that gains in AUC there (+3.9, interval includes 0 unless marked)."
    ),
}
"""By method."""
UNFIT: Mapping[str, str] = {
    "anchor": "and `tidal` thin out long prompts; with 67 tokens nothing is left out.",
    "var": (
        "moves attention from visual sinks to other image tokens. `smol` has a text sink (a third to "
        "five sixths of the attention) but no visual ones, at 49 tokens or 196; the dimension that "
        "marks the text sink is high on all image tokens, and VAR refuses with that figure."
    ),
    "paint": "needs patch tokens and a class token of a vision transformer; this tower is a CNN.",
    "pasta": (
        "wants heads that were profiled for the model: 270 heads over some dozens of questions, half "
        "an hour of a core; not done here. Without, it refuses."
    ),
}
"""Methods that `smol` says nothing about, and why."""
