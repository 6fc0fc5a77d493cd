"""Patterns of the values of the E2E challenge's slots in normalised text, for ``evaluation.slots``.

A phrase of ``PHRASES`` lists the values that a text with it may state. ``FRIENDLY`` finds what a text says of families, and
``NEGATION`` whether that is negated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SLOTS = ("name", "near", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly")
LOW, MIDDLE, HIGH = ("cheap", "less than £20"), ("moderate", "£20-25"), ("high", "more than £30")
BAD, AVERAGE, GOOD = ("low", "1 out of 5"), ("average", "3 out of 5"), ("high", "5 out of 5")

_POUND = r"(?:£ ?|l ?|gbp ?)?"
_MONEY = r"(?: ?(?:£|gbp|pounds?|quid|euros?|dollars?|l\b))?"
_PRICED = r"(?:price|cost|pric(?:ed|es|ey|ing)|budget|range(?! (?:customer|rating|review))|bracket)s?"
_OF = (
    r"(?: (?:range|point|bracket|level|tag|menu|food)s?)?(?: (?:is|are|was|of|in|at|a|an|the|its|it|very|quite|"
    r"rather|fairly|being|remains?|considered|relatively|pretty|which|that|somewhat|bit|can|be|ranged|ranges|range|"
    r"of their (?:\w+ )?food|·)){0,4} "
)
_WHO = (
    r"(?:(?:cu?o?stu?o?mers?|consumers?|users?|guests?|patrons?|diners?|clients?|visitors?|overall|service|"
    r"satisfaction|star|public|"
    r"level|quality|food|general|approval|very|out|of|in|from|our|its|their|s|review|feedback) ){0,4}"
)
_RATING = (
    r"(?:rat(?:ings?|ed?|es|ting|eing)|reviews?|reviewed|scores?|scored|feedback|reputation|satisfaction|"
    r"rank(?:ed|ing)?s?|recommended)"
)
_IS = (
    r"(?: (?:is|are|was|of|as|at|a|an|the|it|its|very|quite|rather|fairly|by|customers?|has|have|been|being|"
    r"only|just|to|be|which|that|"
    r"stands?|considered|generally|them|somewhat|pretty|overall|for ·|·)){0,5} "
)
_NUMBERS = {"1": "1|one|a single", "2": "2|two", "3": "3|three", "4": "4|four", "5": "5|five"}
_ANY = r"(?:only )?(?:\d|one|two|three|four|five)"
_CHILDREN = (
    r"(?:kid(?:s|dies)?|child(?:ren)?s?|family|families|familys|all ages?|youngsters|toddlers|little ones|"
    r"under 18s?|minors)"
)
NEGATION = (
    rf"(?:not(?! only)|\w*n t|non|none|no|never|without|leave|beware|poor choice|free|neither|nor|cannot|"
    rf"unsuitable|unfriendly|avoid|anti|lacks?|rather than|isnt|doesnt|arent|discourag\w+|unsuited|"
    rf"inappropriate|prohibit\w*|hardly|far from|bad (?:for|place|{_CHILDREN})|instead of)"
)


@dataclass(frozen=True)
class Phrase:
    """A pattern, and the values that a text with it may state; a ``vague`` one can confirm a value, never contradict one."""

    values: tuple[str, ...]
    pattern: re.Pattern[str]
    vague: bool = False


def _phrases(*rows: tuple[tuple[str, ...], str] | tuple[tuple[str, ...], str, bool]) -> tuple[Phrase, ...]:
    return tuple(Phrase(row[0], re.compile(rf"\b(?:{row[1]})(?!\w)"), *row[2:]) for row in rows)


def _stars(number: str) -> str:
    """Return a pattern of "3 out of 5", "three-star", "rated 3" and the like."""
    n = f"(?:{_NUMBERS[number]})"
    return (
        rf"{n} ?(?:out (?:of )?|of |/ ?|in |- ?)(?:a )?(?:possible )?(?:5|five)|"
        rf"(?<!of )(?<!/ )(?<!/)(?<!-)(?<!out ){n}(?: (?:customer|michelin))? stars?|{n} (?:to|on (?:a|"
        rf"the) scale of) (?:5|five)|{_RATING}{_IS}{n}(?! ?(?:/|-|out|of|star|to|on))|"
        rf"(?<!of )(?<!/ )(?<!/)(?<!-)(?<!to )(?<!out )(?:{n}) (?:customer )?rat(?:ed|ings?)"
    )


PHRASES: dict[str, tuple[Phrase, ...]] = {
    "eatType": _phrases(
        (("coffee shop",), 
            r"coffee ?(?:shop|house|bar|place|store|cafe|restaurant|pub|establishment)s?|cafes?|cafeteria|coffees"),
        (("coffee shop",), r"coffee|tea ?(?:shop|room|house)", True),
        (("pub",), r"pubs?"),
        (("pub",), r"bar|tavern|inn|pub\w+", True),
        (("restaurant",), r"rest[au]+r[au]+nts?"),
        (("restaurant",), r"bistro|diner|eatery|steakhouse|dining (?:establishment|room|place)", True),
    ),
    "food": _phrases(
        (("Chinese",), r"chinese?"),
        (("English",), r"english|british"),
        (("Fast food",), r"fast ?foods?"),
        (("Fast food",), 
            r"burgers?|fast (?:and \w+ )?(?:\w+ )?food|(?:quick|fast)(?: service)?(?: \w+)? (?:meals?|foods?|"
            r"restaurant|service)|junk food", True),
        (("French",), r"french"),
        (("Indian",), r"indian?"),
        (("Italian",), r"italian?"),
        (("Japanese",), r"japane?se"),
        (("Japanese",), r"sushi|japan", True),
        (("Indian",), r"curry|curries|india", True),
        (("Italian",), r"pasta|pizzas?|italy", True),
    ),
    "priceRange": _phrases(
        (("less than £20",), 
            rf"(?:less(?:er)?(?: than| then)?|under|below|beneath|up to|lower than|cheaper than|within|no more than|"
            rf"not more than|maximum(?: of)?|at most|not over|less that|(?:never|not) exceed\w*) {_POUND}20{_MONEY}|"
            rf"{_POUND}20{_MONEY} or (?:less|under|lower|below)|sub {_POUND}20|{_POUND}20{_MONEY} (?:and under|max\w*)"),
        (("less than £30",), 
            rf"(?:no|not|less|lower|cheaper) (?:more )?(?:than|over|above) {_POUND}30{_MONEY}|(?:under|below|"
            rf"up to) {_POUND}30{_MONEY}"),
        (("more than £30",), 
            rf"(?:more(?: than| then)?|over|above|at least|exceed\w*|greater than|higher than|(?:starting|starts?|"
            rf"begin\w*|up)?(?: at| from)|upwards? of|in excess of|beyond|"
            rf"minimum(?: cost| price| of)*|not less than) {_POUND}30{_MONEY}|"
            rf"{_POUND}30{_MONEY}(?: ?\+| or (?:more|above|over)| plus| and (?:up|above|over|more))"),
        (("£20-25",), rf"{_POUND}20{_MONEY} ?(?:-|to|and|through|or|until|~)? ?{_POUND}25{_MONEY}"),
        (LOW[:1] + LOW[1:], 
            r"(?:very |quite |cheaply )?(?:cheap(?:ly|er|est|ish)?|inexpensive(?:ly)?|unexpensive|bargain|budget|"
            r"economical(?:ly)?|low cost|good value|thrifty|value for money)"),
        (LOW, 
            rf"(?:low(?:er than average|er|est|ly)?|below average|small|great value|reduced)(?: (?:to|or|end|"
            rf"and affordable))? ?(?:food |menu )?{_PRICED}|{_PRICED}{_OF}(?:low(?:er|est)?|small)(?! customer| rat)"),
        (LOW, 
            r"not (?:too |very |so |that |at all |really )?(?:expensive|pricey|high priced|costly)|isn t (?:too |very |"
            r"so |that )?(?:expensive|pricey)|won t break the bank|without breaking the bank|easy on the (?:pocket|"
            r"wallet)", True),
        (LOW + MIDDLE, 
            r"affordabl[ey]|affordability|fair(?:ly)? pric\w+|(?:good|great|decent|nice|competitive(?:ly)?|acceptable|"
            r"modest(?:ly)?|sensible|sensibly) pric\w+|well priced"),
        (LOW + MIDDLE, 
            rf"reasonabl[ey] ?{_PRICED}|{_PRICED}{_OF}(?:reasonabl[ey]|fair)|reasonabl[ey]|sensible", True),
        (MIDDLE, 
            rf"(?<!above )(?<!below )(?<!than )(?:moderate(?:ly)?|moderated|modest(?:ly)?|average(?:ly)?|medium|"
            rf"mid(?:dle)?|mid(?:dle)? range|median|normal(?:ly)?|regular(?:ly)?|standard|intermediate(?:ly)?|middling|"
            rf"midrange)(?: (?:to|or) \w+)? ?(?:range |value )?{_PRICED}|{_PRICED}{_OF}(?:moderate(?:ly)?|average|"
            rf"medium|mid(?:dle)?(?: range)?|normal|midrange)(?! customer| rat)"),
        (MIDDLE, 
            r"mid(?:dle)? ?ranged?(?! rat| customer)|moderate(?:ly)?(?: expensive)?|not (?:too |very |so |that )?cheap|"
            r"averagely", True),
        (HIGH, 
            rf"(?:high(?:er|est|ly)?(?: end| than average)?|above average|upper(?: end)?|premium|top|expensive|steep|"
            rf"luxury|upscale|large) ?(?:food |menu )?{_PRICED}|{_PRICED}{_OF}(?:(?:on the )?high(?:er)?(?: end| side)?|"
            rf"expensive|above average|steep)(?! customer| rat)"),
        (HIGH, 
            r"expensive(?:ly)?|pricey|pric[ie]y|costly|high cost|upmarket|up market|upscale|up scale|exclusive|luxur\w+"),
        (HIGH, 
            r"high ?(?:end|class|quality|priced|range|ranged|price)|fine dining|fancy|posh|not (?:too |very |so |"
            r"that )?cheap|isn t cheap|premium|top end", True),
    ),
    "customer rating": _phrases(
        (BAD, _stars("1")),
        (("2 out of 5",), _stars("2")),
        (AVERAGE, _stars("3")),
        (("4 out of 5",), _stars("4")),
        (GOOD, _stars("5")),
        (BAD, 
            rf"(?:low(?:er|est|ly)?|poor(?:ly|er)?|bad(?:ly)?|terrible|terribly|worst|negative(?:ly)?|below average|"
            rf"awful|horrible|unfavou?rable|dismal|not (?:very |so |too |that )?(?:well|good|high(?:ly)?|"
            rf"great))(?: ,)? {_WHO}{_RATING}(?! of {_ANY})|{_RATING}{_IS}(?:low(?:er|est|ly)?|poor(?:ly)?|bad(?:ly)?|"
            rf"terrible|below average|not (?:very |so |that )?(?:good|high|great))(?! pric| cost)|(?:isn t|doesn t|"
            rf"don t|aren t|not) (?:have |get |receive )?(?:a |very |so |the )*(?:well|good|high(?:ly)?|great|"
            rf"best) {_WHO}{_RATING}(?! of {_ANY})"),
        (AVERAGE, 
            rf"(?:average(?:ly)?|averaged|mediocre|moderate(?:ly)?|medium|middling|mid|middle|mixed|ok|okay|fair(?:ly)?|"
            rf"decent(?:ly)?|mid range|neutral|normal|satisfactory|adequate|standard|"
            rf"so so)(?: ,)? {_WHO}{_RATING}(?! of {_ANY})|{_RATING}{_IS}(?:average(?:ly)?|moderate(?:ly)?|mediocre|"
            rf"medium|ok|okay|decent|fair|mid(?:dle)?|satisfactory|mixed)(?! pric| cost)"),
        (AVERAGE + GOOD, 
            rf"(?:good|well|nice(?:ly)?|positive(?:ly)?|favou?rabl[ey]|solid|respectable|"
            rf"reasonabl[ey]) {_WHO}{_RATING}(?! of {_ANY})|{_RATING}{_IS}(?:good|well|positive(?:ly)?|favou?rabl[ey])"),
        (GOOD, 
            rf"(?:high(?:er|est|ly)?|hight|excellent(?:ly)?|great(?:ly)?|very good|very well|top|best|outstanding|"
            rf"perfect|amazing|fantastic|superb|exceptional(?:ly)?|above average|wonderful|strong|impressive|"
            rf"super)(?: ,)? {_WHO}{_RATING}(?! of {_ANY})|{_RATING}{_IS}(?:high(?:er|est|ly)?|excellent|great|top|"
            rf"very good|outstanding|perfect|above average|exceptional)(?! pric| cost| end)"),
        (BAD, 
            r"(?:low(?:ly)?|poor|bad|badly) (?:customers?|quality|service|standards?)|low stars?|not (?:highly |"
            r"well )?recommended", True),
        (AVERAGE, r"averagely|mediocre|(?:average|decent)(?! (?:pric|cost|rang|budget|amount)\w*)", True),
        (GOOD, 
            r"(?:highly|well|very|customers?) (?:recommended|regarded|approved|acclaimed|praised|rated|satisfied|"
            r"respected|loved)|excellent|great (?:service|customer)|high (?:customers?|quality|standards?|satisfaction|"
            r"stars?|value)|top notch|very good|good customer", True),
    ),
    "area": _phrases(
        (("city centre",), 
            r"(?<!outside )(?<!outside of )(?<!outside the )(?<!outside of the )(?<!side the )(?:city|town|cities|"
            r"citys|downtown)(?: s)? ?(?:cent(?:re|er|ral|ers|res)|cetre|centr|area)|cent(?:re|er)s?(?: area| part|"
            r" side)? of (?:the )?(?:city|town|cambridge)|citycent(?:re|er)|(?:in|at|to|from) the cent(?:re|er)|"
            r"downtown|inner city|heart of (?:the )?(?:city|town)|middle of (?:the )?(?:city|town)|central (?:area|"
            r"city|location|cambridge)|cent(?:re|er) city"),
        (("city centre",), r"cent(?:re|er)|central(?:ly)?|in (?:the )?(?:city|town)|city|town", True),
        (("riverside",), 
            r"river ?side|river ?(?:bank|front|area|s edge)s?|waterfront|waterside|(?:near|by|at|to|along|on|off|"
            r"beside|of|overlooking|the|with|next) (?:the )?rivers?|banks? of (?:the )?river|riversides?"),
        (("riverside",), r"river\w*|riverise|rivserside|riveside|quayside", True),
    ),
}  # fmt: skip
FRIENDLY = re.compile(
    rf"\b(?:{_CHILDREN} (?:and \w+ )?(?:un)?(?:friend(?:ly|ily)|orientated|oriented|suitable|welcoming|"
    rf"appropriate|based|focused|aimed|centered|style|safe|free)|"
    rf"{_CHILDREN} (?:are |is |were |be |and \w+ )*(?:very |always |also |more than |warmly |n t |not |most |"
    rf"all )*(?:welcomed?|allowed|accepted|permitted|catered|admitted|encouraged)|"
    rf"(?:friendly|suitable|suited|good|great|perfect|ideal|fun|nice|safe|appropriate|open|recommended|fit|best|"
    rf"designed|meant|okay|ok|place|intended|cater\w*|welcom\w+|aimed|excellent|wonderful|fine|allow\w*|"
    rf"accept\w*|accommodat\w+|permit\w*|bring\w*|enjoy\w*|suits?|take|lovely|friend|fantastic|brilliant|geared|"
    rf"proper|comfortable|kind|atmosphere|environment|entertain\w*|serve\w*|prohibit\w*|admit\w*|attract\w*|"
    rf"discourag\w*|leave|offer\w*|everyone|experience|venue|pub|shop|restaurant|food|inclusive|have|like|"
    rf"without|with|no|not|non|unfriendly|friendliness|unsuitable|visit|unfit|fair|for) "
    rf"(?:in |it |(?:them |services |options |food |venue |space )?(?:to|for|of|with|towards?|at) )?(?:(?:the|"
    rf"your|a|their|any|all|whole|entire|both|adults and|small|young|bringing|having|groups|in|for|larger?|"
    rf"families with|types of|day out|out|have|kinds of|everyone in the|people with|younger|our|more|my|little|"
    rf"suitable) )*{_CHILDREN}|"
    rf"(?:for|whole|entire) {_CHILDREN}|{_CHILDREN} (?:place|restaurant|pub|venue|establishment|environment|"
    rf"atmosphere|coffee|shop|day|eatery|dining|run|fun|outings?|meals?|joint|setting|service|menu|experience)|"
    rf"friend family|friendly family|unfriendly {_CHILDREN}|for everyone|{_CHILDREN})(?!\w)"
)
ADULT = re.compile(
    r"(?<!and )(?<!or )(?<!as )\b(?:childless|adults? only|adults? (?:\w+ ){0,2}(?:establishment|venue|place|"
    r"pub|restaurant|coffee|shop|environment|atmosphere|crowd|dining|setting|oriented|orientated|friendly|"
    r"based|themed|bar|eatery|cli?en?t\w*|audience|theme|location|night|experience|spot)|"
    r"only (?:for )?(?:\w+ )?adults|(?:for|caters? to|aimed at|to|exclusively|strictly|just|"
    r"more) (?:an? )?(?:the )?(?:mature )?adults?(?! (?:and|as well|alike|too|or|with)\b)|"
    r"over 18s?|18 ?\+|grown ups?|mature (?:audience|crowd|clientele)s?|adults(?! (?:and|as well|alike|too|or|"
    r"with)\b))(?!\w)"
)
