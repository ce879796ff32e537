"""A reader's comments on the tables of `columns_page`, written about one stored run."""

from __future__ import annotations

from collections.abc import Mapping

READ_OF: Mapping[str, int] = {
    "scenes": 64,
    "limit": 192,
    "validation": 16,
    "trials": 6,
    "twin": 32,
    "captions": 32,
}
"""Sizes of the run that was read."""
IN_SHORT = (
    "No method answers better: no accuracy and no AUC rises beyond chance, on scenes, on "
    "photographs or on the twin. What moves answers moves the threshold, and where yes gets more "
    "frequent it goes to absent partners first. Of the 56 that were asked about, 11 % are "
    "affirmed as it is, as many as of the other kinds that POPE picks; with AvisC, ICD, "
    "highlighting, VAF and VHR 20 to 29 %, and of other kinds at most 15; with AVAR 61 and 45 %. "
    "On the twin partners stay at 3 % or less (AVAR: 55 %). So the prior is there, and a lower "
    "threshold lets it through. DoLa (4 %) and CARVE (5 %) affirm fewer, and take more from what "
    "is there in unseen pictures (15 and 70 points). In captions 36 of 100 objects named aren't "
    "there as it is. AD-HH names 15.5 points fewer, and 15 points fewer of those that are there: "
    "captions name right things twice. Only M3ID improves precision and recall, by 5 points "
    "each, though not after Holm's correction. CARVE, VHR, DoLa and Devils are worse beyond "
    "chance, and SPIN and ILVAD lose recall."
)
"""The comment on all methods together."""
READINGS: Mapping[str, str] = {
    "adaptvis": (
        "does nothing that shows: margins move by 0.1 to 0.2, and one caption of 32 changes."
    ),
    "adhh": (
        "does nothing to answers: on four heads of 270, found on 16 validation captions, margins "
        "move by 0.01. Its claim is about captions, and these it changes (9 % stay as they are): "
        "15.5 [4.9, 26.1] points fewer wrong objects, each object counted once a caption 14.5 "
        "[4.6, 24.7] (precision), for 14.9 [6.7, 22.6] points of recall: it does what its paper "
        "claims, at a price. Captions get no shorter: 84 % name something twice, of the unedited "
        "ones 12 %."
    ),
    "avar": (
        "hurts by moving the threshold. Its effect on attention is large (0.39 in 30 layers), "
        "margins of what isn't there rise by 3, those of what is there hardly move. On the twin "
        "likewise. On photographs, where the model says yes too rarely, 24 points more yes cost no "
        "accuracy; the AUC moves on none."
    ),
    "avisc": (
        "costs AUC, see `vcd`. Where its cut leaves a choice, yes goes to partners (11 to 20 %)."
    ),
    "carve": (
        "hurts most: of the picture stretched to what it keeps little is recognised. The margin "
        "of what is there falls by 9, in unseen pictures by 7, of what isn't by 0.5 at most. Seven "
        "of eight objects in captions are wrong."
    ),
    "devils": (
        "does nothing that shows to answers: its effect is 0.20 in 13 layers, and all margins move "
        "by 0.3. Captions it does change (31 % stay): 5.0 [1.2, 9.0] points more wrong objects."
    ),
    "dola": (
        "hurts: where its cut leaves both words (18 % of the questions), yes falls, to unseen "
        "pictures by 15 points, to partners from 11 to 4 %. See `vcd` for the AUC. Captions lose "
        "10.7 [2.4, 19.0] points of recall and 9.9 of precision."
    ),
    "gift": (
        "does nothing that shows. It works against itself: what is there loses 0.4 to 0.7, what "
        "isn't gains 0.1."
    ),
    "highlight": (
        "moves the threshold: attending more to the whole image raises every margin, by 2 of what "
        "is there, by 1 of what isn't. Yes to unseen pictures gains 10 points and yes to partners "
        "12, on the twin none. Captions get a little longer, and most name something twice."
    ),
    "icd": (
        "moves the threshold towards yes where its cut leaves a choice: partners from 11 to 20 %. "
        "See `vcd` for the AUC."
    ),
    "ilvad": (
        "flattens: what is there loses 1.6 to 2.6, other kinds gain 1.1 to 1.4. In captions that "
        "shows more: nearly twice as long, a fifth of them cut off, 22.3 [11.9, 32.5] points less "
        "recall."
    ),
    "m3id": (
        "does nothing to answers, which are a word long: its weight grows with the length. Its "
        "claim is about captions, and of 32 it rewrites 17, for the better: 4.7 [0.7, 8.7] points "
        "fewer wrong objects, 5.0 [1.7, 8.7] more recall. One result of twenty, at 5 %."
    ),
    "pai": (
        "does nothing that shows: the last row has 6 % of its attention on the image (mean over "
        "layers), 0.2 more of that is an effect of 0.04 at most, and margins move by 0.1. The best "
        "of six other settings gains 0.3 points of AUC on validation scenes, and nothing on test."
    ),
    "scalingvis": (
        "flips no answer: an effect of 0.18 in 30 layers takes 0.5 to 0.7 from the margin of what "
        "is there and gives 0.3 to that of what isn't."
    ),
    "spin": (
        "does little to answers: silencing a tenth of the heads takes 0.8 from the margin of what "
        "is there. Captions it breaks: all are rewritten, 91 % name something twice, 12.4 [4.8, "
        "20.2] points of recall are lost."
    ),
    "vaf": (
        "moves the threshold: yes to what is there rises from 93 to 98 %, to partners from 11 to "
        "23 %, to others from 10 to 15 %, at an unchanged AUC. On the twin partners stay at 0: it "
        "strengthens what the prior says as well. Tuned, the same a little further: 0.6 points of "
        "AUC on validation scenes, none on test."
    ),
    "vcd": (
        "costs AUC. Its plausibility cut (beta 0.1) rules one of the two words out in 82 % of the "
        "questions, so the contrast decides only the rest. **That the AUC falls by 2 points in all "
        "contrasts (`avisc`, `dola`, `icd`, `m3id`) is of that making: questions that are cut "
        "tie.** Tuned by AUC it becomes 2.7 times as strong and affirms 54 % of the "
        "partners, for 6.2 points of accuracy: six trials on 16 scenes choose badly."
    ),
    "vhr": (
        "hurts. Doubling half of the heads in 14 layers flattens the margins (what is there loses "
        "1 to 1.4, what isn't gains as much), affirms 29 % of the partners, and breaks the text: "
        "10 % of the answers go on after the word, 44 % of the captions run on to the limit, with "
        "23 points more wrong objects and as much less recall. Tuned to 1.24 it does nothing that "
        "shows."
    ),
    "vicrop": (
        "crops nothing here: its window is as large as the picture, so it shows the picture twice "
        "and reports that it never acted. On photographs, which are larger, it acts and gains 2.5 "
        "points of AUC; the interval includes 0."
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
