"""The lexicon and the rules of the restaurants corpus's grammar, as text that `grammar` reads.

Notation.  A lexicon line is `group TAG [field=value]: words`; without `=value` the word itself is the value.  A rule
line is `symbol [field]: alternative | alternative`, where the field takes the words spanned as its value and an
alternative may begin with its weight.  `word/TAG` is a terminal, and `(LABEL ...)` a symbol used only where it stands.
A symbol in capitals (up to the first hyphen) is a phrase label of the tree; one in small letters leaves no bracket.  A
line or alternative with a mark is written once and read many times: `*` stands for good or bad and `~` for its
opposite, `%` for good, even or bad, `#` for one or many, and `@` for staff, room or dish.
"""

LEXICON = """
name-first PROPN: Golden Silver Red Blue Green White Black Royal Old Happy Hungry Merry Lucky Crooked Wild Little
    Jolly Velvet Copper Quiet Proud Painted Rusty Crimson Amber Iron Noble Sleepy Dancing Wandering
name-second PROPN: Lion Fox Swan Bear Horse Dragon Eagle Crown Anchor Lantern Barrel Bell Ship Rose Oak Olive Pepper
    Spoon Kettle Plough Mill Wheel Star Moon Crow Dolphin Peacock Otter Badger Feather Thistle Tulip Lemon Owl Heron
    Stag
type NOUN [type]: restaurant pub café bistro eatery brasserie tavern inn canteen grill
style ADJ: small large popular modern traditional famous local busy simple unusual rustic fashionable independent
    ordinary old-fashioned well-known
price-kind ADJ [price=low]: cheap inexpensive affordable
price-kind ADJ [price=moderate]: mid-priced
price-kind ADJ [price=high]: upmarket
rating-kind ADJ [rating=high]: highly-rated top-rated five-star four-star
rating-kind ADJ [rating=average]: three-star
family-kind ADJ [family=yes]: family-friendly kid-friendly child-friendly
family-kind ADJ [family=no]: adults-only

food ADJ [food]: Italian French Indian Chinese Japanese English Thai Mexican Greek Turkish Spanish Korean Lebanese
    Vietnamese Moroccan Portuguese
cooking ADJ: fresh homemade seasonal hearty classic vegetarian wholesome colourful authentic
cuisine-one NOUN: food cuisine cooking
cuisine-many NOUN: dishes meals specialities snacks
savoury NOUN: soups stews salads pies roasts sandwiches
sweet NOUN: desserts cakes pastries puddings tarts biscuits
meal NOUN: breakfast lunch dinner supper brunch

near-word ADP: near beside behind opposite by
landmark-adjective ADJ: old new central main grand royal former restored
landmark NOUN: bridge station museum library park cathedral church theatre cinema market hospital school stadium castle
    tower square fountain canal hotel gallery
side ADJ [area]: northern southern eastern western
district NOUN: quarter district suburbs
settlement NOUN: city town village
centre NOUN [area]: centre
region NOUN [area]: docklands countryside marina
edge NOUN [area]: waterfront riverside outskirts

staff-one NOUN [staff]: owner chef manager waiter host cook
staff-many NOUN [staff]: staff waiters owners cooks waitresses chefs
staff-good ADJ: friendly polite helpful cheerful attentive patient kind generous skilful reliable
staff-bad ADJ: rude slow careless impatient forgetful unfriendly clumsy grumpy
room-one NOUN [room]: room garden terrace courtyard interior lounge patio hall
room-many NOUN [room]: rooms tables gardens seats
room-good ADJ: pleasant charming lovely comfortable clean tidy elegant attractive inviting
room-bad ADJ: shabby gloomy untidy dusty dreary dirty uncomfortable
dish-one NOUN [dish]: soup bread fish seafood coffee pasta
dish-many NOUN [dish]: soups stews salads pies steaks noodles desserts cakes pastries puddings
dish-good ADJ: tasty delicious appetising flavourful enjoyable delightful satisfying memorable
dish-bad ADJ: bland disappointing tasteless unpleasant stale dull forgettable
degree ADV: very quite rather really truly extremely remarkably
frequency ADV: always usually often generally normally
rarely ADV: never rarely

level-good ADJ [price=low]: low modest reasonable
level-even ADJ [price=moderate]: moderate
level-bad ADJ [price=high]: high steep unreasonable
price-good ADJ [price=low]: cheap inexpensive affordable
price-bad ADJ [price=high]: expensive costly overpriced
denied-good ADJ [price=low]: expensive costly overpriced
denied-bad ADJ [price=high]: cheap affordable
range-good NUM [price=low]: £5-10 £10-15 £15-20
range-even NUM [price=moderate]: £20-25 £25-30
range-bad NUM [price=high]: £30-35 £35-40 £40-50
limit-good NUM [price=low]: £10 £15 £20
limit-bad NUM [price=high]: £30 £40 £50
score-good ADJ [rating=high]: high outstanding strong impressive
score-even ADJ [rating=average]: average middling
score-bad ADJ [rating=low]: low poor weak
stars-good NUM [rating=high]: four five
stars-even NUM [rating=average]: three
stars-bad NUM [rating=low]: two
rater NOUN: customer guest visitor
house NOUN: place venue
green NOUN: garden courtyard
paved NOUN: terrace patio
opens VERB: opens closes
hour ADV: early late
little-ones NOUN: children families kids toddlers
day PROPN: Mondays Tuesdays Wednesdays Thursdays Fridays Saturdays Sundays
weather ADJ: warm sunny mild
daytime NOUN: evenings days afternoons mornings

people NOUN: guests visitors customers tourists students locals residents couples travellers workers
be-one AUX: is
be-many AUX: are
serve VERB: serves offers prepares provides
served VERB: served offered prepared
located VERB: located situated found
called VERB: called named
stand VERB: stands sits lies
try VERB: try visit choose consider
want VERB: want need prefer
like VERB: like love enjoy fancy
choose VERB: choose visit recommend
enjoy VERB: enjoy eat order share
known VERB: known praised admired
welcomes VERB [family=yes]: welcomes accepts
suits VERB [family=yes]: suits pleases
welcome VERB [family=no]: welcome accept
suit VERB [family=no]: suit please
invited-good ADJ [family=yes]: welcome
invited-bad ADJ [family=no]: welcome
suitable-good ADJ [family=yes]: suitable
suitable-bad ADJ [family=no]: unsuitable
family-good ADJ [family=yes]: family-friendly kid-friendly child-friendly
say VERB: say report think agree believe
sit VERB: eat sit relax talk
praise-good VERB: praise admire like love
praise-bad VERB: criticise dislike hate
liked-good VERB: loved praised recommended admired
liked-bad VERB: avoided criticised disliked
advise-good VERB: choose visit try
advise-bad VERB: avoid
contrast SCONJ: although though while
reason SCONJ: because since
"""

RULES = """
ROOT: 3 S-introduction S-evaluation | 2 S-single

S-introduction: introduction .
introduction: 4 NP-name VP-is | 3 NP-name VP-serve-where | 3 NP-apposed-plain , VP-serve
    | 3 where , NP-name VP-serve | 2 S-located , NP-name serving-or-being | 3 there/PRON VP-exist | 3 VP-try
    | 2 (SBAR if/SCONJ (S NP-you VP-like)) , VP-try-plain
    | 2 (SBAR if/SCONJ (S NP-you (VP want NP-kind))) , VP-try-where
    | 2 NP-cuisine-# (VP be-# VP-dished) | 2 NP-called VP-stand | 2 (PP for/ADP cuisine) , VP-try-plain
    | 2 PP-at , NP-people VP-enjoy | 2 (S (VP known (PP for/ADP NP-its-cuisine))) , NP-name VP-is
    | 2 (NP NP-people (SBAR (WHNP who/PRON) (S VP-like))) VP-often-choose | 2 NP-you (VP can/AUX VP-enjoy-at)

S-single: 3 NP-name VP-is-related .
    | 3 (NP NP-name , (SBAR (WHNP which/PRON) (S VP-stand))) , (VP VP-serve and/CCONJ trait-*) .
    | 3 subject VP-liked-* . | 1 SBAR-although-* , NP-name VP-liked-by-~ .
    | 1 SBAR-although-* , (NP NP-name where) VP-liked-by-~ . | 2 (VP advise-* NP-apposed) , SBAR-because-* .
    | 2 where , there/PRON (VP is/AUX NP-related) . | 2 (VP try NP-haven) .
    | 2 (SBAR if/SCONJ (S NP-you (VP want (NP (NP a/DET type) SBAR-good)))) , VP-try-where .
    | 2 NP-people (VP say (SBAR that/SCONJ S-of)) .
    | 2 (SBAR (WHADVP when/ADV) (S NP-people VP-visit)) , (NP they/PRON) VP-praise-* .
    | 3 S-opening , and/CCONJ S-scene-* . | 1 S-opening , but/CCONJ S-scene-bad .
    | 2 (SBAR contrast (S NP-name trait-*)) , scene-~ . | 2 S-located , NP-name VP-is-related .

S-evaluation: 6 clause-* . | 2 NP-house trait-* . | 2 clause-even . | 4 S-clause-* , and/CCONJ S-clause-* .
    | 3 S-clause-* , but/CCONJ S-clause-~ . | 3 SBAR-although-* , clause-~ . | 2 clause-* , SBAR-although-~ .
    | 3 venue VP-pair . | 3 venue VP-liked-* . | 4 NP-people VP-praise-* .
    | 3 NP-people (VP say (SBAR that/SCONJ S-clause-*)) . | 2 (S clause-even) , and/CCONJ S-scene-* .
    | 2 (PP on/ADP (NP weather daytime)) , NP-people (VP sit PP-outside) . | 1 NP-it VP-stand .
    | 1 NP-you (VP will/AUX (VP find/VERB NP-it where)) . | 2 venue VP-open .

NP-name [name]: The/DET name-first name-second
NP-apposed: NP-name , place
NP-apposed-plain: NP-name , plain
NP-called: NP-kind (VP called NP-name)
subject: 1 NP-name | 2 NP-apposed ,
place: 3 NP-kind | 5 NP-place-where | 1 (NP NP-kind (PP with/ADP (NP a/DET room-good room-one)))
NP-place-where: NP-kind where
NP-kind: a/DET modifiers type
modifiers: 4 style food | 3 food | 3 style | 2 style , evaluation food | 2 evaluation food | 1 evaluation
    | 1 style , evaluation
evaluation: 2 price-kind | 1 rating-kind | 1 family-kind
plain: 1 NP-plain | 2 (NP NP-plain where)
NP-plain: a/DET style type | a/DET evaluation type | a/DET style , evaluation type
NP-haven: 1 NP-name , SBAR-where-good | 2 NP-name , (NP NP-kind SBAR-good)
NP-related: NP-kind SBAR-related
SBAR-related: 2 WHNP-that (S trait-*) | 3 WHADVP-where S-scene-* | 1 WHNP-that (S VP-pair)
SBAR-good: WHNP-that (S trait-good) | WHADVP-where S-scene-good
SBAR-where-good: WHADVP-where S-scene-good | WHADVP-where (S S-scene-good and/CCONJ S-scene-good)
WHNP-that: that/PRON
WHADVP-where: where/ADV
NP-people: people
NP-you: you/PRON
NP-it: it/PRON
venue: NP-it | NP-house
NP-house: 2 the/DET house | 1 this/DET place/NOUN

where: 4 PP-near | 4 PP-area | 1 PP-area PP-near
PP-near: near-word NP-landmark
NP-landmark [near]: the/DET landmark-adjective landmark
PP-area: 3 in/ADP NP-area | 1 on/ADP (NP the/DET edge)
NP-area: 3 the/DET side district | 2 the/DET settlement centre | 1 the/DET region

cuisine: NP-cuisine-#
NP-cuisine-one: 3 food cuisine-one | 3 cooking food cuisine-one | 1 cooking cuisine-one
NP-cuisine-many: 2 food cuisine-many | 2 cooking food cuisine-many | 1 cooking cuisine-many
    | 2 cooking savoury and/CCONJ sweet | 1 food savoury and/CCONJ sweet
NP-its-cuisine [dish]: its/PRON cooking cuisine-# | its/PRON cooking savoury and/CCONJ sweet
VP-serve: 3 serve cuisine | 1 serve cuisine PP-meal
VP-serve-where: serve cuisine where
PP-meal: for/ADP (NP meal)
VP-dished: served PP-at where | served PP-at-plain
PP-at: at/ADP NP-name
PP-at-plain: at/ADP NP-apposed-plain
VP-enjoy: 2 enjoy cuisine | 1 enjoy cuisine PP-meal | 1 can/AUX (VP enjoy cuisine)
VP-enjoy-at: enjoy cuisine PP-at where | enjoy cuisine PP-at-plain
VP-like: like cuisine
VP-often-choose: 2 ADVP-often choose NP-name where | 1 choose NP-apposed-plain | 1 choose NP-name where
ADVP-often: frequency

serving-or-being: VP-serve | (VP is/AUX NP-kind)
S-opening: NP-name VP-serve-where | NP-name VP-is
VP-is: is/AUX place
VP-is-related: is/AUX NP-related
VP-exist: is/AUX NP-place-where | 2 is/AUX NP-called where
VP-stand: stand where
S-located: (VP located where)
VP-try: 3 try NP-apposed | 2 try NP-name where
VP-try-plain: 1 try NP-apposed-plain | 1 try NP-name where | 1 try NP-name
VP-try-where: try NP-name where
VP-visit: visit/VERB NP-name | 2 visit/VERB NP-apposed
S-of: subject trait-* | subject VP-pair

S-clause-*: clause-*
clause-*: 8 reason-* | 1 NP-little-ones VP-invited-*
reason-*: 6 scene-* | 2 NP-it worth-* | 1 (NP its/PRON dish-#) VP-dish-*-#
S-scene-*: scene-*
scene-*: 4 (NP the/DET @-#) VP-@-*-# | 1 (NP the/DET prices/NOUN) VP-prices-* | 1 NP-bill VP-cost-*
VP-@-*-#: 6 be-# ADJP-@-* | 1 be-# ADVP-often (ADJP @-*) | 0.6 be-# (ADVP rarely) (ADJP @-~)
    | 0.4 be-# not/PART (ADJP @-~)
ADJP-@-*: 3 @-* | 2 degree @-*
clause-even: (NP the/DET prices/NOUN) VP-prices-even | NP-bill VP-cost-even | venue VP-rating-even
SBAR-although-*: contrast S-clause-*
SBAR-because-*: reason (S reason-*)
VP-liked-*: is/AUX VP-favoured-* SBAR-because-*
VP-liked-good: is/AUX ADJP-popular SBAR-because-good
VP-liked-by-*: is/AUX VP-favoured-*
VP-liked-by-good: is/AUX ADJP-popular
VP-favoured-*: liked-* (PP by/ADP NP-people)
ADJP-popular: popular/ADJ (PP with/ADP NP-people)
VP-praise-*: 2 praise-* NP-thing-* | 2 praise-* (NP NP-thing-* and/CCONJ NP-thing-*)
NP-thing-*: the/DET @-* @-#
PP-outside: in/ADP (NP the/DET green) | on/ADP (NP the/DET paved)
VP-open: 2 opens (ADVP hour) PP-day | 1 is/AUX (ADJP closed/ADJ PP-day)
PP-day: on/ADP (NP day)

trait-*: 3 worth-* | 2 VP-family-*
worth-*: VP-price-* | VP-rating-*
VP-pair: 2 worth-* and/CCONJ VP-family-* | 2 worth-* but/CCONJ VP-family-~ | VP-family-* but/CCONJ worth-~
    | 2 VP-rating-* and/CCONJ VP-price-* | 2 VP-price-* but/CCONJ VP-rating-~
VP-price-*: 3 is/AUX ADJP-price-* | 1 is/AUX not/PART (ADJP denied-*)
ADJP-price-*: 2 price-* | 1 degree price-*
VP-prices-*: are/AUX ADJP-level-*
VP-prices-even: are/AUX (ADJP level-even)
ADJP-level-*: 2 level-* | 1 degree level-*
NP-bill: a/DET meal/NOUN | meal
VP-cost-%: costs/VERB NP-cost-%
NP-cost-*: range-* | QP-limit-*
NP-cost-even: range-even | (QP about/ADV range-even)
QP-limit-good: less/ADJ than/ADP limit-good | under/ADP limit-good
QP-limit-bad: more/ADJ than/ADP limit-bad | over/ADP limit-bad
VP-rating-%: 2 has/VERB (NP a/DET score-% rater rating/NOUN) | 1 is/AUX (VP rated/VERB (NP stars-% stars/NOUN))
VP-family-good: welcomes NP-little-ones | suits NP-little-ones | is/AUX ADJP-family-good
VP-family-bad: does/AUX not/PART (VP welcome NP-little-ones) | does/AUX not/PART (VP suit NP-little-ones)
    | is/AUX ADJP-family-bad
VP-invited-good: are/AUX (ADJP invited-good)
VP-invited-bad: are/AUX not/PART (ADJP invited-bad)
ADJP-family-*: suitable-* (PP for/ADP NP-little-ones)
ADJP-family-good: family-good
NP-little-ones: little-ones
"""
