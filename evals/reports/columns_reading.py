"""A reader's comments on the tables of `columns_page`, written about one stored run."""

from __future__ import annotations

from collections.abc import Mapping

READ_OF: Mapping[str, int] = {
    "scenes": 64,
    "limit": 192,
    "validation": 16,
    "trials": 6,
    "twin": 32,
    "captions": 48,
}
"""Sizes of the run that was read."""
IN_SHORT = (
    "No method takes yes from absent partners without taking it from things that are there: 36 % "
    "of them are affirmed as it is, by the twin none. Fewer only where unseen pictures lose as "
    "much or more (AD-HH 34 %, DoLa 30 %, ViCrop 23 %, CARVE 11 %), more wherever yes is more "
    "frequent. So the prior isn't in where the last row looks, or not in that alone; what these "
    "methods move here is the threshold. In captions 44 of 100 objects named aren't there as it "
    "is. Beyond chance only AD-HH names fewer, by 16 points, and 12 points fewer of those that are "
    "there; CARVE and VHR are worse beyond chance. ILVAD and SPIN (9 and 3 points fewer; the "
    "intervals include 0) repeat themselves, which CHAIR counts each time, and name 17 and 11 "
    "points fewer of what is there: by precision, where each object counts once a caption, "
    "SPIN is better by 9 points, though not after Holm's correction, and ILVAD worse by 10.5, "
    "Devils and highlighting by 5."
)
"""The comment on all methods together."""
READINGS: Mapping[str, str] = {
    "adaptvis": ("does nothing that shows: margins move by 0.1, of what is there by 0.3."),
    "adhh": (
        "does next to nothing on four heads of 270, found on 16 validation captions: the margin "
        "falls by 0.2 whatever is asked about, a slight move of the threshold towards no. Its "
        "claim is about captions, and these it changes (3 of 48 stay as they are): 16.5 [7.7, "
        "25.0] points fewer wrong objects, each object counted once a caption still 13.3 [7.9, "
        "19.0] (precision), for 11.8 [7.0, 16.7] points of recall: it does what its paper claims, "
        "at a price. Captions get no shorter: 42 of the 48 name something twice, of the unedited "
        "ones 1."
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
        "is there falls by 11, in seen and unseen pictures alike, of partners by 2. Five of six "
        "objects in captions are wrong."
    ),
    "devils": (
        "does nothing that shows: its effect is 0.20 in 13 layers, and all margins move by less "
        "than 0.3. Captions it does change (5 of 48 stay): they get longer, with 4.5 [0.8, "
        "8.3] points more wrong objects, each object counted once 5.2 [2.0, 8.7]."
    ),
    "dola": (
        "hurts a little: where its cut leaves both words (11 % of the questions), yes falls, to "
        "unseen pictures by 10 points. See `vcd` for the AUC. Captions lose 7 points of recall."
    ),
    "gift": (
        "does nothing that shows. It works against itself: what is there loses 0.7, what isn't "
        "gains 0.4, too little to flip an answer, enough for half a point of AUC. "
        "Captions get longer, with 4 points less precision."
    ),
    "highlight": (
        "moves the threshold: attending more to the whole image raises every margin. Yes to what "
        "is there is paid for with 22 points more yes to partners; on the twin, whose partners "
        "start at 0, with 3. Captions likewise: six objects in place of four, 5.9 [1.7, 10.4] "
        "points more of what is there, at 5.4 [2.0, 8.7] points less precision."
    ),
    "icd": (
        "moves the threshold towards yes where its cut leaves a choice. See `vcd` for the AUC."
    ),
    "ilvad": (
        "flattens: what is there loses margin, other kinds gain, and 7 % of the answers run on "
        "past their end. In captions that shows more: nearly twice as long, a fifth of them cut "
        "off, 17 points less recall. They name 9 points fewer wrong objects because right ones are "
        "repeated: each counted once a caption, it is 10.5 [4.4, 16.6] more."
    ),
    "m3id": (
        "does nothing: answers are a word long and its weight grows with the length. Its claim is "
        "about captions, of which it rewrites 30 of 48, without an effect beyond chance."
    ),
    "pai": (
        "does nothing that shows: the last row has 6 % of its attention on the image (mean over "
        "layers), 0.2 more of that is an effect of 0.05 at most, and margins move by 0.1. Of six "
        "other settings tuning found none better by more than 0.2 points of AUC on validation "
        "scenes. Captions change (28 of 48 stay), for the worse: 3.8 [1.1, 7.1] points less recall."
    ),
    "scalingvis": (
        "does nothing that shows: an effect of 0.17 in 30 layers moves margins by 0.4 at most."
    ),
    "spin": (
        "moves the threshold a little: silencing a tenth of the heads raises the margins of what "
        "isn't there by 0.9 to 1. The twin's answers stay. Captions it breaks: nearly twice as "
        "long, a fifth cut off, 46 of the 48 name something twice. Each object counted once, 9.3 "
        "[3.0, 15.8] points fewer are wrong, for 11 points of recall: as AD-HH, it names fewer."
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
        "took 2.3 away. Captions get nearly twice as long, with 14 points more wrong objects "
        "and as much less recall."
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
