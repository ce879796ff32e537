"""English singulars as Pattern 3.6 gives them, mistakes included.

The official CHAIR script normalises words with ``pattern.en.singularize``, so its scores depend on
outputs such as bus -> bu, glass -> glas and ties -> ty. This module gives the same outputs, found
by watching what clips/pattern@d25511f returns; Pattern itself cannot be installed with pip.
"""

from __future__ import annotations

from functools import lru_cache


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PREPOSITIONS = _words("""
    about above across after among around at athwart before behind below beneath beside besides
    between betwixt beyond but by during except for from in into near of off on onto out over since
    till to under until unto upon with
""")

# Words with one form for both numbers, and words without a plural.
_UNINFLECTED = _words("""
    advice aircraft antelope bison bread bream breeches britches butter carp cattle chassis cheese
    christmas clippers cod contretemps corps debris deer diabetes djinn eland electricity elk
    equipment fish flounder fruit furniture gallows garbage georgia graffiti gravel happiness
    headquarters herpes high-jinks homework information innings jackanapes ketchup knowledge love
    luggage mackerel mathematics mayonnaise measles meat mews moose mumps mustard news offspring
    pincers pliers proceedings progress rabies research rice salmon sand scissors series shears
    sheep software species swine swiss trout tuna understanding water whiting wildebeest
""")

# Plurals of nouns on -ie that come back as they are.
_IE_PLURALS = _words("""
    aunties beanies birdies bogies bombies collies cookies cuties doggies eyries freebies goonies
    groupies hankies hippies hoagies indies junkies laddies laramies lingeries meanies newbies
    nighties oldies pixies quickies reveries rookies softies sorties stoolies sweeties techies
    toughies valkyries veggies weenies yuppies zombies
""")

# Whole endings, looked at before the rules: policemen -> policeman, shelves -> shelve.
_IRREGULAR = {
    "atlantes": "atlas",
    "atlases": "atlas",
    "axes": "axe",
    "beeves": "beef",
    "brethren": "brother",
    "children": "child",
    "corpora": "corpus",
    "corpuses": "corpus",
    "ephemerides": "ephemeris",
    "feet": "foot",
    "ganglia": "ganglion",
    "geese": "goose",
    "genera": "genus",
    "genii": "genie",
    "graffiti": "graffito",
    "helves": "helve",
    "kine": "cow",
    "leaves": "leaf",
    "loaves": "loaf",
    "men": "man",
    "monies": "money",
    "moves": "move",
    "mythoi": "mythos",
    "occipita": "occiput",
    "opera": "opus",
    "opuses": "opus",
    "our": "my",
    "oxen": "ox",
    "penes": "penis",
    "people": "person",
    "sexes": "sex",
    "soliloquies": "soliloquy",
    "teeth": "tooth",
    "testes": "testis",
    "turves": "turf",
    "zoa": "zoon",
}

_CONSONANTS = "bcdfghjklmnpqrstvwxz"


def _after(letters: str, ending: str) -> tuple[str, ...]:
    return tuple(letter + ending for letter in letters)


# (endings, letters to drop, letters to add); the first rule with a matching ending is applied.
_RULES: tuple[tuple[tuple[str, ...], int, str], ...] = (
    (("ae",), 1, ""),
    (("itis",), 0, ""),
    (("eaux",), 1, ""),
    (("quizzes",), 3, ""),
    (("matrices",), 3, "x"),
    (("apices", "vertices", "indices"), 4, "ex"),
    (("aliases", "statuses"), 2, ""),
    (_after("octpvir", "i"), 1, "us"),
    (("crises", "axes", "testes"), 2, "is"),
    (("shoes",), 1, ""),
    (("oes", "buses"), 2, ""),
    (("mice", "lice"), 3, "ouse"),
    (("xes", "ches", "sses", "shes"), 2, ""),
    (("movies", "ombies"), 1, ""),
    (("series",), 0, ""),
    ((*_after(_CONSONANTS, "ies"), "quies"), 3, "y"),
    (("alves", "elves", "olves"), 3, "f"),
    (("deaves",), 1, ""),
    (("eaves",), 3, "f"),
    (("arves",), 3, "f"),
    (("erves",), 1, ""),
    (("nives", "lives", "wives"), 3, "fe"),
    (("lves", "rves"), 3, "f"),
    (("aves", "eves", "oves", "sives", "tives", "hives"), 1, ""),
    (("fves",), 1, ""),
    (("ves",), 3, "fe"),
    (("analyses",), 2, "is"),
    (("bases", "diagnoses", "parentheses", "prognoses", "synopses", "theses"), 2, "is"),
    (("opses", "yses"), 2, "is"),
    ((*_after("hdronbp", "oses"), "closes"), 1, ""),
    (("oses",), 2, "is"),
    (("ta", "ia"), 1, "um"),
    (("news",), 0, ""),
    (("s",), 1, ""),
)


@lru_cache(maxsize=1 << 16)
def singularize(word: str) -> str:
    """The singular of a lower-case word by Pattern's rules, right or wrong: bus -> bu."""
    head, hyphen, tail = word.partition("-")
    if hyphen and tail.partition("-")[0] in _PREPOSITIONS:
        return singularize(head) + hyphen + tail
    if word.endswith("'"):
        return singularize(word[:-1]) + "'s"
    # Not only the entries: "s" and "is" are kept too, because "mumps" and "chassis" end with them.
    if any(entry.endswith(word) for entry in _UNINFLECTED) or word.endswith(_IE_PLURALS):
        return word
    for plural, singular in _IRREGULAR.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    for endings, drop, add in _RULES:
        if word.endswith(endings):
            return word[: len(word) - drop] + add
    return word
