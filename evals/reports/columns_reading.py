"""A reader's comments on the tables of `columns_page`, written about one stored run."""

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
IN_SHORT = (
    "No method takes yes from absent partners without taking it from things that are there: 36 % "
    "of them are affirmed as it is, by the twin none. Fewer only where unseen pictures lose as "
    "much or more (AD-HH 34 %, DoLa 30 %, ViCrop 23 %, CARVE 11 %), more wherever yes is more "
    "frequent. So the prior isn't in where the last row looks, or not in that alone; what these "
    "methods move here is the threshold. In 16 captions no method is better by more than chance: "
    "40 of 100 objects named aren't there as it is, and where fewer are (AD-HH 10 points, ILVAD 9, "
    "SPIN 3; the intervals include 0), 13 to 25 points fewer of those that are there get named. "
    "That says little; AD-HH's gain is beyond chance on 48 scenes, and so is what it costs. "
    "CARVE and VHR are worse beyond chance."
)
"""The comment on all methods together."""
READINGS: Mapping[str, str] = {
    "adaptvis": ("does nothing that shows: margins move by 0.1, of what is there by 0.3."),
    "adhh": (
        "does next to nothing on four heads of 270, found on 16 validation captions: the margin "
        "falls by 0.2 whatever is asked about, a slight move of the threshold towards no. Its "
        "claim is about captions, and these it changes (1 of 16 stays as it is): 10 points fewer "
        "wrong objects, perhaps by chance, for 20 points of recall. On 48 scenes, which took in "
        "these 16: 16.5 [7.7, 25.0] points fewer, each object counted once a caption still 13.3 "
        "[7.9, 19.0], for 11.8 [7.0, 16.7] points of recall: it does what its paper claims, at a "
        "price. Captions get no shorter: 42 of the 48 name something twice, of the unedited ones 1."
    ),
    "avar": (
        "hurts by moving the threshold. Its effect on attention is large (0.40 in 30 layers), "
        "margins of what isn't there rise by 3, those of what is there fall. On the twin "
        "likewise. On photographs, where the model says yes too rarely, the same push looks like "
        "a gain in accuracy; the AUC moves on none."
    ),
    "avisc": ("hurts a little, through few questions: see `vcd`."),
    "carve": (
        "hurts most. It keeps 60 % of the picture on average, stretched, and the margin of what "
        "is there falls by 11, in seen and unseen pictures alike, of partners by 2. Nine of ten "
        "objects in captions are wrong."
    ),
    "devils": (
        "does nothing that shows: its effect is 0.20 in 13 layers, and all margins move by less "
        "than 0.3. Captions it does change (3 of 16 stay), with 7 points more wrong objects."
    ),
    "dola": (
        "hurts a little: where its cut leaves both words (11 % of the questions), yes falls, to "
        "unseen pictures by 10 points. See `vcd` for the AUC."
    ),
    "gift": (
        "does nothing that shows. It works against itself: what is there loses 0.7, what isn't "
        "gains 0.4, too little to flip an answer, enough for half a point of AUC."
    ),
    "highlight": (
        "moves the threshold: attending more to the whole image raises every margin. Yes to what "
        "is there is paid for with 22 points more yes to partners; on the twin, whose partners "
        "start at 0, with 3."
    ),
    "icd": (
        "moves the threshold towards yes where its cut leaves a choice. See `vcd` for the AUC."
    ),
    "ilvad": (
        "flattens: what is there loses margin, other kinds gain, and 7 % of the answers run on "
        "past their end. In captions that shows more: twice as long, a quarter of them cut off, "
        "25 points less recall."
    ),
    "m3id": (
        "does nothing: answers are a word long and its weight grows with the length. Its claim is "
        "about captions, of which it rewrites 11 of 16, without an effect beyond chance."
    ),
    "pai": (
        "does nothing that shows: the last row has 6 % of its attention on the image (mean over "
        "layers), 0.2 more of that is an effect of 0.05 at most, and margins move by 0.1. Of six "
        "other settings tuning found none better by more than 0.2 points of AUC on validation "
        "scenes. Captions change (7 of 16 stay), for the worse: 5 points more wrong objects."
    ),
    "scalingvis": (
        "does nothing that shows: an effect of 0.17 in 30 layers moves margins by 0.4 at most."
    ),
    "spin": (
        "moves the threshold a little: silencing a tenth of the heads raises the margins of what "
        "isn't there by 0.9 to 1. The twin's answers stay. Captions it breaks: twice as long, a "
        "quarter cut off, every one names something twice."
    ),
    "vaf": (
        "moves the threshold: yes to what is there rises from 91 to 98 %, to partners from 36 to "
        "49 %, to others from 7 to 14 %, at an unchanged AUC. On the twin partners stay at 0: it "
        "strengthens what the prior says as well. Tuned by AUC it takes all layers and says yes "
        "to 82 %: a gain of 0.1 on validation scenes, bought with 18 points of accuracy."
    ),
    "vcd": (
        "hurts a little. Its plausibility cut (beta 0.1) rules one of the two words out in 89 % "
        "of the questions, so the contrast decides only the rest. **That the AUC falls by 6 "
        "points in all contrasts (`avisc`, `dola`, `icd`, `m3id`) is of that making: questions "
        "that are cut tie.** Tuned to less than half the strength it costs less."
    ),
    "vhr": (
        "hurts. Doubling half of the heads in 14 layers flattens the margins (what is there loses "
        "3) and breaks the text: 54 % of the answers go on after the word, 33 % at the tuned "
        "strength of 1.88. Tuning promised 2 points of AUC on 16 validation scenes; the test "
        "took 2.3 away. Captions get twice as long, with 15 points more wrong objects."
    ),
    "vicrop": (
        "crops nothing here: its window is as large as the picture, so it shows the picture twice "
        "and reports that it never acted. On photographs, which are larger, it hides 77 % and "
        "gains 3.9 points of AUC; the interval includes 0."
    ),
}
"""The comments by method."""
UNFIT: Mapping[str, str] = {
    "anchor": ("and `tidal` thin out long prompts; of 67 tokens they leave nothing out."),
    "var": (
        "moves attention from visual sinks to other image tokens. `smol` has a text sink but no "
        "visual ones, with 49 tokens or 196; the dimension that marks the text sink is high on "
        "all image tokens, and VAR refuses with that figure."
    ),
    "paint": (
        "needs patch tokens and a class token of a vision transformer; this tower is a "
        "convolutional network."
    ),
    "pasta": (
        "wants heads that were profiled for the model: 270 heads over some dozens of questions, "
        "about half an hour of a core, which wasn't spent. Without them it refuses."
    ),
}
"""Methods that `smol` says nothing about, and why."""
