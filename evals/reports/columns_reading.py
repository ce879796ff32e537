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
    "frequent it goes to absent partners first. Of the 55 that were asked about, 16 % are "
    "affirmed as it is, of the other kinds that POPE picks 9; with ICD, VAF, VHR, VCD and "
    "highlighting 20 to 24 %, and of other kinds at most 12; with AVAR 76 and 50 %. On the twin "
    "partners stay at 3 % or less (AVAR: 55 %). So the prior is there, and a lower threshold lets "
    "it through. DoLa (7 %) and CARVE (13 %) affirm fewer, and take more from what is there in "
    "unseen pictures (20 and 65 points). In captions 30 of 100 objects named aren't there as it "
    "is, and no method makes them better: with eleven of them precision or recall falls beyond "
    "chance, also after Holm's correction. AD-HH has 3 points of precision more, within chance, "
    "for 9 of recall. AdaptVis and VAF hardly change captions (97 and 84 % stay)."
)
"""The comment on all methods together."""
READINGS: Mapping[str, str] = {
    "adaptvis": (
        "does nothing that shows: margins move by 0.1 to 0.2, and one caption of 32 changes."
    ),
    "adhh": (
        "does nothing to answers: on four heads of 270, found on 16 validation captions, margins "
        "move by 0.2 to 0.3. Its claim is about captions, and these it changes (16 % stay as they "
        "are), not for the better: 1.8 points fewer wrong objects and, each object counted once a "
        "caption, 2.9 points more precision, both within chance, for 9.1 [1.7, 16.5] points of "
        "recall. 47 % name something twice, of the unedited ones 6 %."
    ),
    "avar": (
        "hurts by moving the threshold. Its effect on attention is large (0.39 in 30 layers), "
        "margins of what isn't there rise by 3, those of what is there hardly move. On the twin "
        "likewise. On photographs, where the model says yes too rarely, 32 points more yes cost no "
        "accuracy beyond chance; the AUC moves on none."
    ),
    "avisc": (
        "costs AUC, see `vcd`, and moves no answer beyond chance. Captions lose 11.6 [5.9, 17.4] "
        "points of recall and 7.7 of precision."
    ),
    "carve": (
        "hurts most: of the picture stretched to what it keeps little is recognised. The margin "
        "of what is there falls by 8, in unseen pictures by 6, of what isn't by 0.3 at most. Six "
        "of seven objects in captions are wrong."
    ),
    "devils": (
        "does nothing that shows to answers: its effect is 0.20 in 13 layers, and all margins move "
        "by 0.3 at most. Captions it does change (22 % stay): 6.1 [1.6, 11.0] points more wrong "
        "objects, 7.7 of precision lost."
    ),
    "dola": (
        "hurts: where its cut leaves both words (18 % of the questions), yes falls, to unseen "
        "pictures by 20 points, to partners from 16 to 7 %. See `vcd` for the AUC. Captions lose "
        "15.7 [7.4, 24.0] points of recall and 12.9 of precision."
    ),
    "gift": (
        "does nothing that shows to answers. It works against itself: what is there loses 0.3 to "
        "0.5, what isn't gains 0.3. Captions it spoils: 47 % name something twice, 12.2 [6.2, "
        "18.5] points of precision are lost."
    ),
    "highlight": (
        "moves the threshold: attending more to the whole image raises every margin, by 2 of what "
        "is there, by 0.4 to 0.9 of what isn't. Yes to unseen pictures gains 10 points and yes to "
        "partners 8, on the twin none. 38 % of the captions name something twice, and 7.0 [2.4, "
        "11.8] points of precision are lost."
    ),
    "icd": (
        "moves the threshold towards yes where its cut leaves a choice: unseen pictures from 90 to "
        "100 %, partners from 16 to 20 %. See `vcd` for the AUC."
    ),
    "ilvad": (
        "flattens: what is there loses 1.7 to 3, what isn't gains 1 to 1.3. In captions that shows "
        "more: half as long again, 72 % name something twice, 23.1 [14.9, 31.5] points less recall."
    ),
    "m3id": (
        "does nothing to answers, which are a word long: its weight grows with the length. Its "
        "claim is about captions, and of 32 it rewrites 18, for the worse: 5.5 [1.5, 9.6] points "
        "more wrong objects, 6.1 of precision lost."
    ),
    "pai": (
        "does nothing that shows to answers: the last row has 5 % of its attention on the image "
        "(mean over layers), 0.2 more of that is an effect of 0.04 at most, and margins move by "
        "0.1. Captions lose 6.6 [0.9, 12.2] points of recall, not after Holm's correction. None of "
        "six other settings has more AUC on validation scenes."
    ),
    "scalingvis": (
        "flips no answer: an effect of 0.18 in 30 layers takes 0.2 to 0.4 from the margin of what "
        "is there and gives 0.2 to that of what isn't."
    ),
    "spin": (
        "does nothing that shows to answers: with a tenth of the heads silenced, margins of what "
        "isn't there rise by 0.3 to 0.5. Captions it breaks: all are rewritten, 84 % name "
        "something twice, 17.4 [10.7, 24.4] points of recall are lost."
    ),
    "vaf": (
        "moves the threshold: yes to what is there rises from 93 to 98 %, in unseen pictures from "
        "90 to 100, to partners from 16 to 20 %, at an unchanged AUC. On the twin partners stay at "
        "3. Tuned on 16 validation scenes for 0.2 points of AUC it affirms 65 % of the partners "
        "and loses 15 points of accuracy: AUC knows no threshold, so tuning by it may move one."
    ),
    "vcd": (
        "costs AUC. Its plausibility cut (beta 0.1) rules one of the two words out in 82 % of the "
        "questions, so the contrast decides only the rest, with yes to partners from 16 to 22 %. "
        "**That the AUC falls by 2 points in all contrasts (`avisc`, `dola`, `icd`, `m3id`), by 8 "
        "on photographs, is of that making: questions that are cut tie.** Captions lose 15.7 [8.4, "
        "23.0] points of recall and 12.4 of precision."
    ),
    "vhr": (
        "hurts. Doubling half of the heads in 14 layers flattens the margins (what is there loses "
        "2 to 3, what isn't gains 1 to 2), and breaks the text: 18 % of the answers go on after "
        "the word, 53 % of the captions run on to the limit, with 23 points more wrong objects and "
        "22 less recall. On 16 validation scenes its AUC is 1.3 points above the unedited, so "
        "tuning kept it as it comes; on test it gains none."
    ),
    "vicrop": (
        "crops nothing here: its window is as large as the picture, so it shows the picture twice "
        "and reports that it never acted. On photographs, which are larger, it acts: AUC and "
        "accuracy are 2 to 3 points lower, within chance."
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
