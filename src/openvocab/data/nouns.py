"""The things a caption names, found by rule: no tagger, no download.

A noun phrase begins after a word of a closed class (a, two, on, and, ...) or a mark, and ends before the next one or
before a verb, which word lists and endings tell. Its last word is the noun.
"""

import re

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[^\w\s]")

_CLOSED = set(
    """a an the this that these those some any each every another other others both all several many few more most much
    no one two three four five six seven eight nine ten dozen pair couple lot lots group bunch number
    my your his her its their our i you he she it we they him them me us who whom whose which what there here
    in on at of by to from with without into onto over under above below behind beside between among around through
    across along near next against toward towards off out up down for during after before about inside outside within
    upon past beneath underneath atop amid via like than while as and or but nor so if then because when where
    very too also just only not out together away back forward apart ahead outdoors indoors downhill uphill
    is are was were be been being am has have had do does did can could will would may might must should
    left right top bottom middle center centre front rear side background foreground distance edge end s""".split()
)
"""Words that no phrase holds: those of closed classes, of quantity, and of place."""
_MEDIA = set("photo photograph picture image sketch drawing painting view shot closeup close-up snapshot".split())
"""Not named by a caption that says "a photo of ..."."""
_VERBS = set(
    """runs jumps plays stands sits walks rides looks holds wears climbs smiles poses watches swims catches throws leaps
    does makes takes carries leans lies lays talks eats performs swings stares hits kicks chases pulls pushes slides
    goes gets gives tries waits reads works sleeps dances skates surfs skis bikes drives flies falls hangs shows
    run jump play stand sit walk ride look hold wear climb smile pose watch swim catch throw leap make take carry lean
    talk eat perform stare hit kick chase pull push slide go get give try wait read work sleep dance bite bites race
    races cross crosses travel travels enjoys enjoy prepares prepare attempts attempt laughs laugh kisses kiss splashes
    touches touch helps help puts put lays laid buzzes
    paddles rests rest seen shown taken made worn held ridden sat stood ran caught thrown lying sitting dressed
    covered filled surrounded""".split()
)
_ADJECTIVES = set(
    """red green blue yellow purple orange cyan white black brown gray grey pink tan golden silver blond blonde dark
    light bright crimson scarlet emerald navy violet tangerine turquoise snowy colorful colourful
    small large big little tiny huge tall short long young old elderly older younger new wet dry dirty muddy sandy
    rocky grassy snowy icy sunny busy empty crowded open high low deep shallow hot cold warm cool wooden metal
    asian african american male female adult teenage two-toned single same different dressed plain noisy striped dotted
    checked spotted checkered bearded crowded haired clothed colored coloured""".split()
)
_THINGS = set(
    "building painting clothing railing ceiling evening morning wedding pudding bed shed sled dogsled seed weed".split()
)
_ADJECTIVE = re.compile(r"..+(?:ous|ful|less|able|ible|[^aeiou]ish|ive|ical|ern)$")
_DETERMINERS = {"a", "an", "the", "my", "your", "his", "her", "its", "their", "our"}
_ADVERB = re.compile(r".{2,}ly$")
_PARTICIPLE = re.compile(r".*[aeiouy].*(?:ing|ed)$")
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "leaves": "leaf", "knives": "knife", "wolves": "wolf", "shelves": "shelf",
    "scarves": "scarf", "movies": "movie", "shoes": "shoe", "horses": "horse", "bus": "bus", "grass": "grass",
}  # fmt: skip


def noun_phrases(text: str) -> list[str]:
    """Nouns with their adjectives, singular, in the order of the text, each once: "a red ball" gives "red ball"."""
    phrases = (_WORD.findall(text[start:end].lower()) for start, end in noun_spans(text))
    return list(dict.fromkeys(" ".join([*words[:-1], singular(words[-1])]) for words in phrases))


def noun_spans(text: str) -> list[tuple[int, int]]:
    """The characters of every noun with its adjectives."""
    found, phrase, opening = [], [], ""
    places = [(match[0].lower(), match.start(), match.end()) for match in _WORD.finditer(text)]
    for word, start, end in [*places, (".", len(text), len(text))]:
        words = [each for each, *_ in phrase]
        if _goes_on(word, words, opening):
            phrase.append((word, start, end))
            continue
        if words and not _adjective(words[-1]) and not (word == "of" and words[-1] in _MEDIA):
            found.append((phrase[0][1], phrase[-1][2]))
        phrase, opening = [], word
    return found


def nouns(text: str) -> list[str]:
    """The nouns alone, singular, in the order of the text, each once."""
    return list(dict.fromkeys(phrase.split(" ")[-1] for phrase in noun_phrases(text)))


def singular(noun: str) -> str:
    """One of them."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("men"):
        return noun[:-2] + "an"
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if re.search(r"(?:ss|(?<!o)us|x|z|ch|sh)es$", noun):
        return noun[:-2]
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and len(noun) > 3:
        return noun[:-1]
    return noun


def _goes_on(word: str, phrase: list[str], opening: str) -> bool:
    """Whether the word belongs to the phrase so far, which began after `opening`."""
    if not word[0].isalpha() or word in _CLOSED or _ADVERB.match(word):
        return False
    if _adjective(phrase[-1]) if phrase else opening in _DETERMINERS:
        return True
    one = opening in ("a", "an") and phrase and word.endswith("s") and not word.endswith(("ss", "us"))
    verb = word in _VERBS or (_PARTICIPLE.match(word) and word not in _THINGS and word not in _ADJECTIVES)
    return not (verb or one)


def _adjective(word: str) -> bool:
    return word in _ADJECTIVES or bool(_ADJECTIVE.match(word))
