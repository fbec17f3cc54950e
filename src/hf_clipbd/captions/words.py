# Copyright 2026 The hf_clipbd authors. Licensed under the Apache License, Version 2.0.
"""The closed classes of English that the caption parser rests on: determiners, prepositions, auxiliaries and so on."""


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _set(
    "a an the this that these those his her their its my your our some any each every no another both all several "
    "many few various one two three four five six seven eight nine ten eleven twelve dozen hundred thousand "
    "million 's half multiple numerous most much more other what-a dozens hundreds thousands"
)
PLURAL_DETERMINERS = _set(
    "these those two three four five six seven eight nine ten eleven twelve several many few both multiple numerous"
)
PRONOUNS = _set(
    "i you he she it we they him them me us someone somebody something everyone everybody everything nobody "
    "anyone anything nothing himself herself itself themselves myself yourself"
)
BE = _set("is are was were be been being am 're 'm isn't aren't wasn't weren't ain't isnt arent wasnt werent")
HAVE = _set("has have had having does do did 've hasn't haven't hadn't hasnt havent")
MODALS = _set(
    "can could will would may might must should shall 'll 'd don't doesn't didn't can't cannot couldn't won't "
    "wouldn't shouldn't dont doesnt didnt cant couldnt wont wouldnt shouldnt"
)
PREPOSITIONS = _set(
    "in on at by with of from for into onto over under near behind beside besides between above below around "
    "round through across along against inside outside off up down out past toward towards among amongst amid "
    "beneath underneath upon within without throughout during via like beyond atop alongside about opposite after "
    "before until till per despite except unlike aboard amidst astride thru accross infront"
)
# Prepositions before a noun phrase, but adverbs before another preposition: "stands outside in the rain".
PLACES = _set("outside inside above below underneath behind beneath nearby")
# Adverbs and prepositions that are nouns or adjectives after a determiner: "a back flip", "his home", "the inside".
AMBIGUOUS = _set("back home inside outside overhead above past round down up aside forward upside off like")
SUBORDINATORS = _set("as while whilst when because if although though since unless whereas so than")
RELATIVES = _set("who which whom whose where that what how why")
CONJUNCTIONS = _set("and or but & nor")
ADVERBS = _set(
    "not very too also just only together away back forward forwards backward backwards outdoors indoors upside "
    "downhill uphill upstairs downstairs there here now then still again already always never n't even almost "
    "quickly slowly yesterday today tomorrow tonight ahead aside apart home upwards downwards nearby headfirst "
    "sideways midair overhead ever once twice"
)
# Words that deny what follows them in their clause, or are a denied thing themselves.
NEGATIONS = _set(
    "not never n't nothing nobody none neither nor hardly scarcely rarely seldom cannot isn't aren't wasn't "
    "weren't ain't hasn't haven't hadn't don't doesn't didn't can't couldn't won't wouldn't shouldn't dont doesnt "
    "didnt isnt arent wasnt werent hasnt havent cant couldnt wont wouldnt shouldnt"
)
CLAUSE_MARKS = frozenset(",;:()|/.!?–—-")

# Prepositions of several words, all of whose words count as one relation.
COMPLEX = tuple(
    tuple(text.split())
    for text in (
        "next to", "close to", "prior to", "because of", "out of", "instead of", "away from", "back to", "back from",
        "ahead of", "along with", "due to", "in between", "such as", "together with", "apart from", "inside of",
        "outside of", "as part of", "in front of", "on top of", "in back of", "in need of", "up and down",
    )
)  # fmt: skip
# ... and those built around a noun of place: "in the middle of", "at the edge of".
PLACE_PREPOSITIONS = _set("in on at to by from near along over around down off")
PLACE_NOUNS = _set(
    "front side sides edge top middle center centre bottom back end base corner foot left right rear midst "
    "background foreground heart"
)

# Collectives stand for what follows their "of": a group of people is people, a body of water is water.
COLLECTIVES = _set(
    "group groups pair pairs couple bunch crowds lot lots piece pieces set sets number variety collection series "
    "row rows herd flock line lines pile piles stack stacks selection range array load bit slice gang handful "
    "cluster assortment majority pack team duo trio type types kind kinds sort dozens hundreds thousands plenty "
    "rest mix body bodies"
)
# Pictures stand for what they show, when they are the subject: a close-up of a dog is a dog.
PICTURES = _set(
    "picture pictures photo photos photograph photographs image images portrait portraits illustration "
    "illustrations drawing drawings painting paintings close-up closeup close-ups shot shots view views footage "
    "video vector silhouette silhouettes sketch rendering scene scenes clip example examples version rendition "
    "animation detail details snapshot cartoon composite print photography icon"
)
STANDING_FOR = COLLECTIVES | PICTURES
SUBJECT_PRONOUNS = _set("i you he she it we they that who what here there this let how where")
# Words in -ing that are things first.
THINGS = _set(
    "building ceiling clothing wedding evening morning railing string ring spring wing king thing lighting "
    "housing awning bedding darling sibling duckling dumpling pudding lightning viking sling ping earring icing "
    "stuffing crossing offspring outing herring seedling sapling buildings ceilings weddings railings evenings "
    "mornings strings rings springs wings kings things awnings siblings ducklings dumplings earrings surroundings "
    "paintings drawings crossings belongings seedlings saplings outings offerings meetings openings"
)
# Words in -ing that are events after a singular noun: "business meeting".
EVENTS = _set("tasting meeting training gathering screening listing")
# Prepositions after which an -ing form modifies a noun: "in running water", but "by holding hands".
SPOTS = _set(
    "in on with at into onto through over near from along across under behind beside around between against to"
)
# Participles that mean little without the word before them: "dark haired".
DEPENDENT_PARTICIPLES = _set(
    "haired colored coloured sized shaped eyed legged faced backed sleeved covered filled lined aged wheeled themed"
    " inspired based coated topped powered"
)
# Participles that make an adjective with the noun before them: "snow covered hills".
COMPOUND_PARTICIPLES = _set(
    "covered filled lined paneled panelled shaped colored coloured haired sized themed inspired based coated "
    "capped topped clad striped framed styled painted carved roofed tiled walled infested strewn laden bound "
    "drawn powered backed eyed legged faced sleeved soaked wrapped decorated dyed checkered dressed"
)
# Verbs whose past is their base form.
UNCHANGED = _set("cut put set hit hurt let shut split spread shed cast burst upset cost bet rid beaten-up")
# Verbs that take another verb in -ing: "goes swimming", "starts running".
CATENATIVES = _set(
    "go goes going went gone start starts starting started begin begins beginning began keep keeps keeping kept "
    "enjoy enjoys enjoying enjoyed stop stops stopped continue continues continued try tries trying tried "
    "practice practices practicing like likes love loves finish finishes finished stand stands standing sit sits "
    "sitting lie lies lying lay lays laying come comes coming came run runs running smile smiles"
)
# Verbs that take an adjective: "looks happy", "gets ready".
LINKING = _set(
    "look looks looking looked feel feels feeling felt seem seems seemed become becomes becoming became get gets "
    "getting got stay stays staying stayed remain remains appear appears appeared keep keeps"
)
# Adjectives that WordNet lists as nouns only, or as rare adjectives, and that captions use all the time.
ADJECTIVES = _set(
    "vintage retro vector blonde blond middle-aged elderly digital young little old mid-century hooded aged"
)
# Plurals that are also third persons but hardly ever those: "autumn leaves".
RATHER_THINGS = _set("leaves dresses flowers rings glasses")
# Determiners that stand for a noun: "a gift for all".
STANDALONE = _set("all both some several many most each another this these those one")
# Colours that WordNet lists as things before all.
COLOURS = _set(
    "turquoise tangerine violet lavender teal maroon beige navy indigo magenta cyan aqua azure scarlet crimson ivory"
    " chestnut silver gold bronze khaki burgundy mauve lilac coral peach olive lime orange rose cream charcoal amber"
)
# Commands that point at the subject: "look at the dog".
POINTERS = _set("look check see watch meet notice imagine behold")
# People words that take a plural verb.
PLURALS = _set(
    "people police children men women kids folks youths couple family team crew crowd band staff group public"
)
# After a spaced hyphen these belong to the word before it ("close - up"), before one to the word after it.
HYPHEN_ENDINGS = _set(
    "accessible friendly proof resistant up free style shaped based old haired colored coloured eyed like year "
    "sized out on off in looking fitting time end range scale wide long deep high air size quality century "
    "minute hour day foot inch person shot"
)
HYPHEN_STARTS = _set(
    "high low half self non mid multi pre post semi hot hand long short full part well ill open close royalty ex "
    "co anti two three four five six seven eight nine ten one first second third t x u b wi deep light dark old "
    "new off all ultra super ready e hi lo pop pick step must state art world award black"
)
