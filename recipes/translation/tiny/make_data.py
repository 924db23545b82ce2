"""Makes the sentences of the tiny world: a small German grammar and the same sentences in English.

    Wenn das Kind schläft, ruft mein alter Onkel die Ärztin an.
    When the child sleeps, my old uncle calls the doctor.

Some 150 lemmas; articles and adjectives agree in gender, number and case; verbs stand second in main clauses and last
in subordinate ones; particles, participles and infinitives go to the end; time comes before the objects. So a
translation has to choose words by their place in the sentence and put them elsewhere.

    python recipes/translation/tiny/make_data.py          # train.jsonl, validation.jsonl, test.jsonl beside this file

The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPLIT_SIZES = {"validation": 256, "test": 512, "train": 6_000}
SPLIT_SEED = 20_240_201

NOMINATIVE, ACCUSATIVE, DATIVE = range(3)
# Endings of `dieser`, and of an adjective that has no article before it. `ein` lacks those marked in EIN_IS_BARE.
STRONG = {"m": ("er", "en", "em"), "f": ("e", "e", "er"), "n": ("es", "es", "em"), "pl": ("e", "e", "en")}
DER = {"m": ("der", "den", "dem"), "f": ("die", "die", "der"), "n": ("das", "das", "dem"), "pl": ("die", "die", "den")}
WEAK_E = {*((gender, NOMINATIVE) for gender in "mfn"), ("f", ACCUSATIVE), ("n", ACCUSATIVE)}
EIN_IS_BARE = {("m", NOMINATIVE), ("n", NOMINATIVE), ("n", ACCUSATIVE)}


# ---- Words ----


@dataclass(frozen=True)
class Noun:
    gender: str
    singular: str
    plural: str
    english: str
    english_plural: str

    def german(self, plural: bool, case: int) -> str:
        if not plural:
            return self.singular
        return self.plural + "n" if case == DATIVE and self.plural[-1] not in "ns" else self.plural


@dataclass(frozen=True)
class Verb:
    """`particle` is the separable one of `an|rufen`; `case` is the object's, or None where there is no object."""

    particle: str
    infinitive: str
    third: str
    participle: str
    auxiliary: str
    english: str
    past: str
    case: int | None


def nouns(table: str) -> list[Noun]:
    """Lines of gender, singular, plural, and the English singular and, where it is irregular, plural."""
    rows = [line.split() for line in table.strip().splitlines()]
    return [Noun(*row[:4], row[4] if len(row) > 4 else row[3] + "s") for row in rows]


def verbs(table: str, case: int | None, auxiliary: str = "hat") -> list[Verb]:
    """Lines of infinitive, third person, participle, and after a slash the English infinitive and past."""
    found = []
    for line in table.strip().splitlines():
        german, english = (part.split() for part in line.split("/"))
        particle, _, infinitive = german[0].rpartition("|")
        participle = particle + german[2]
        found.append(
            Verb(particle, infinitive, german[1], participle, auxiliary, " ".join(english[:-1]), english[-1], case)
        )
    return found


PEOPLE = nouns("""
m Mann Männer man men
f Frau Frauen woman women
n Kind Kinder child children
n Mädchen Mädchen girl
m Lehrer Lehrer teacher
f Ärztin Ärztinnen doctor
m Bäcker Bäcker baker
m Fahrer Fahrer driver
m Koch Köche cook
f Freundin Freundinnen friend
f Schwester Schwestern sister
m Bruder Brüder brother
f Tante Tanten aunt
m Onkel Onkel uncle
m Gärtner Gärtner gardener
f Sängerin Sängerinnen singer
f Königin Königinnen queen
m Hund Hunde dog
f Katze Katzen cat
n Pferd Pferde horse
m Vogel Vögel bird
""")
THINGS = nouns("""
n Buch Bücher book
m Brief Briefe letter
m Apfel Äpfel apple
f Tasche Taschen bag
m Stuhl Stühle chair
f Lampe Lampen lamp
m Ball Bälle ball
n Fahrrad Fahrräder bicycle
m Schlüssel Schlüssel key
m Kuchen Kuchen cake
f Flasche Flaschen bottle
n Bild Bilder picture
f Uhr Uhren clock
m Hut Hüte hat
n Messer Messer knife knives
f Blume Blumen flower
f Zeitung Zeitungen newspaper
m Korb Körbe basket
n Auto Autos car
n Ei Eier egg
f Karte Karten map
m Koffer Koffer suitcase
""")
PLACES = nouns("""
m Garten Gärten garden
f Küche Küchen kitchen
n Haus Häuser house
f Schule Schulen school
m Park Parks park
m Wald Wälder forest
n Dorf Dörfer village
f Stadt Städte city cities
n Zimmer Zimmer room
f Kirche Kirchen church churches
m Keller Keller cellar
m Turm Türme tower
""")
PERSON_VERBS = verbs(
    """
an|rufen ruft gerufen / call called
ein|laden lädt geladen / invite invited
besuchen besucht besucht / visit visited
kennen kennt gekannt / know knew
lieben liebt geliebt / love loved
fragen fragt gefragt / ask asked
sehen sieht gesehen / see saw
suchen sucht gesucht / look for looked
""",
    ACCUSATIVE,
)
THING_VERBS = verbs(
    """
kaufen kauft gekauft / buy bought
verkaufen verkauft verkauft / sell sold
nehmen nimmt genommen / take took
holen holt geholt / fetch fetched
finden findet gefunden / find found
suchen sucht gesucht / look for looked
verlieren verliert verloren / lose lost
malen malt gemalt / paint painted
tragen trägt getragen / carry carried
brauchen braucht gebraucht / need needed
vergessen vergisst vergessen / forget forgot
verstecken versteckt versteckt / hide hid
weg|werfen wirft geworfen / throw away threw
zurück|bringen bringt gebracht / bring back brought
an|schauen schaut geschaut / look at looked
ab|holen holt geholt / collect collected
mit|nehmen nimmt genommen / take along took
""",
    ACCUSATIVE,
)
DATIVE_VERBS = [
    *verbs(
        """
helfen hilft geholfen / help helped
danken dankt gedankt / thank thanked
antworten antwortet geantwortet / answer answered
zu|hören hört gehört / listen to listened
""",
        DATIVE,
    ),
    *verbs("folgen folgt gefolgt / follow followed", DATIVE, "ist"),
]
GIVING_VERBS = verbs(
    """
geben gibt gegeben / give gave
zeigen zeigt gezeigt / show showed
schicken schickt geschickt / send sent
vor|lesen liest gelesen / read read
""",
    ACCUSATIVE,
)
INTRANSITIVE_VERBS = [
    *verbs(
        """
schlafen schläft geschlafen / sleep slept
arbeiten arbeitet gearbeitet / work worked
warten wartet gewartet / wait waited
lachen lacht gelacht / laugh laughed
singen singt gesungen / sing sang
tanzen tanzt getanzt / dance danced
weinen weint geweint / cry cried
sitzen sitzt gesessen / sit sat
""",
        None,
    ),
    *verbs(
        """
auf|wachen wacht gewacht / wake up woke
ein|schlafen schläft geschlafen / fall asleep fell
an|kommen kommt gekommen / arrive arrived
""",
        None,
        "ist",
    ),
]
READING = GIVING_VERBS[-1]  # takes what can be read

LIVING_ADJECTIVES = """
alt/old jung/young klein/small groß/big stark/strong klug/clever reich/rich arm/poor freundlich/friendly ruhig/quiet
""".split()
THING_ADJECTIVES = """
alt/old neu/new klein/small groß/big rot/red blau/blue grün/green schwarz/black weiß/white schwer/heavy schön/beautiful
leer/empty lang/long rund/round
""".split()
PREPOSITIONS = ("in/in", "hinter/behind", "vor/in front of", "neben/next to")
MODALS = {  # third person, plural, English third person and plural
    "kann": ("können", "can", "can"),
    "muss": ("müssen", "must", "must"),
    "soll": ("sollen", "should", "should"),
    "will": ("wollen", "wants to", "want to"),
    "wird": ("werden", "will", "will"),
}
SAYING = (("sagt", "sagen", "says", "say"), ("glaubt", "glauben", "believes", "believe"),
          ("weiß", "wissen", "knows", "know"), ("hofft", "hoffen", "hopes", "hope"))  # fmt: skip
TIMES = {
    "present": ("heute/today", "jetzt/now", "jeden Tag/every day", "am Morgen/in the morning"),
    "perfect": ("gestern/yesterday", "letzte Woche/last week", "am Montag/on Monday", "am Abend/in the evening"),
    "modal": ("morgen/tomorrow", "bald/soon", "nächste Woche/next week", "heute/today"),
}
TENSES = ("present", "perfect", "perfect", "modal")


# ---- Noun phrases ----


@dataclass(frozen=True)
class Phrase:
    """A noun with article and perhaps an adjective. Articles: der, dies, ein, mein, unser, kein."""

    noun: Noun
    plural: bool
    article: str
    adjective: str = ""

    @property
    def gender(self) -> str:
        return "pl" if self.plural else self.noun.gender

    def german(self, case: int) -> str:
        strong = STRONG[self.gender][case]
        weak = "e" if (self.gender, case) in WEAK_E else "en"
        if self.article == "der":
            article, ending = DER[self.gender][case], weak
        elif self.article == "dies":
            article, ending = "dies" + strong, weak
        elif self.article == "ein" and self.plural:
            article, ending = "", strong
        elif (self.gender, case) in EIN_IS_BARE:
            article, ending = self.article, strong
        else:
            article, ending = self.article + strong, weak
        adjective = self.adjective.split("/")[0] + ending if self.adjective else ""
        return join(article, adjective, self.noun.german(self.plural, case))

    def english(self) -> str:
        adjective = self.adjective.partition("/")[2]
        noun = self.noun.english_plural if self.plural else self.noun.english
        return join(self.english_article(first=adjective or noun), adjective, noun)

    def english_article(self, first: str) -> str:
        if self.article == "ein":
            return "" if self.plural else "an" if first[0] in "aeiou" else "a"
        if self.article == "dies":
            return "these" if self.plural else "this"
        return {"der": "the", "mein": "my", "unser": "our", "kein": "no"}[self.article]


def pair_of(text: str) -> tuple[str, str]:
    german, english = text.split("/")
    return german, english


def join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def third_person(english: str) -> str:
    """`call` -> `calls`, `look for` -> `looks for`, `carry` -> `carries`."""
    verb, _, rest = english.partition(" ")
    if verb.endswith(("s", "sh", "ch", "x", "o")):
        verb += "es"
    else:
        verb = verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeiou" else verb + "s"
    return join(verb, rest)


# ---- Clauses ----


@dataclass(frozen=True)
class Clause:
    """What a clause says. `tense` is present, perfect or one of MODALS; the pairs are German and English."""

    subject: Phrase
    verb: Verb
    tense: str
    thing: Phrase | None = None
    recipient: Phrase | None = None
    time: tuple[str, str] = ("", "")
    place: tuple[str, str] = ("", "")

    def german_verb(self) -> tuple[str, str]:
        """The finite verb, and what stands at the end of a main clause."""
        plural, verb = self.subject.plural, self.verb
        if self.tense == "present":
            return verb.infinitive if plural else verb.third, verb.particle
        if self.tense == "perfect":
            return {"hat": "haben", "ist": "sind"}[verb.auxiliary] if plural else verb.auxiliary, verb.participle
        return MODALS[self.tense][0] if plural else self.tense, verb.particle + verb.infinitive

    def german_middle(self, with_time: bool = True) -> str:
        recipient = self.recipient.german(DATIVE) if self.recipient else ""
        thing = self.thing.german(self.verb.case) if self.thing else ""
        return join(self.time[0] if with_time else "", recipient, thing, self.place[0])

    def german_main(self, first: str = "") -> str:
        """The verb second. With `first` (a time, or a clause with its comma) the subject follows the verb."""
        finite, end = self.german_verb()
        subject = self.subject.german(NOMINATIVE)
        opening = join(first, finite, subject) if first else join(subject, finite)
        return join(opening, self.german_middle(with_time=first != self.time[0]), end)

    def german_subordinate(self, subject: str | None = None) -> str:
        """The verb last. A relative pronoun may stand for the subject."""
        finite, end = self.german_verb()
        end = end + finite if self.tense == "present" else join(end, finite)
        return join(self.subject.german(NOMINATIVE) if subject is None else subject, self.german_middle(), end)

    def english_verb(self) -> str:
        verb = self.verb
        if self.tense == "present":
            return verb.english if self.subject.plural else third_person(verb.english)
        if self.tense == "perfect":
            return join(verb.past, verb.english.partition(" ")[2])
        return join(MODALS[self.tense][2 if self.subject.plural else 1], verb.english)

    def english_predicate(self, with_time: bool = True) -> str:
        thing = self.thing.english() if self.thing else ""
        recipient = f"to {self.recipient.english()}" if self.recipient else ""
        return join(self.english_verb(), thing, recipient, self.place[1], self.time[1] if with_time else "")

    def english(self, with_time: bool = True) -> str:
        return join(self.subject.english(), self.english_predicate(with_time))


def draw_phrase(rng: random.Random, some: Sequence[Noun], articles: str, adjectives: Sequence[str]) -> Phrase:
    plural = rng.random() < 0.25
    adjective = rng.choice(adjectives) if rng.random() < 0.3 else ""
    return Phrase(rng.choice(some), plural, rng.choice(articles.split()), adjective)


def draw_person(rng: random.Random, besides: Phrase | None = None, articles: str = "der der der ein mein") -> Phrase:
    some = [noun for noun in PEOPLE if besides is None or noun != besides.noun]
    return draw_phrase(rng, some, articles, LIVING_ADJECTIVES)


def draw_thing(rng: random.Random, verb: Verb) -> Phrase:
    some = THINGS[:2] if verb is READING else THINGS
    return draw_phrase(rng, some, "der der ein ein mein unser dies kein", THING_ADJECTIVES)


def draw_place(rng: random.Random) -> tuple[str, str]:
    german, english = pair_of(rng.choice(PREPOSITIONS))
    place = Phrase(rng.choice(PLACES), False, rng.choice(("der", "der", "unser")))
    inside = f"{german} {place.german(DATIVE)}".replace("in dem ", "im ")
    return inside, f"{english} {place.english()}"


def draw_clause(rng: random.Random, tense: str = "", bare: bool = False, subject: Phrase | None = None) -> Clause:
    """A clause; `bare` leaves time and place out."""
    tense = tense or rng.choice(TENSES)
    subject = subject or draw_person(rng)
    kind = rng.choices((PERSON_VERBS, THING_VERBS, DATIVE_VERBS, GIVING_VERBS, INTRANSITIVE_VERBS), (3, 4, 1, 2, 2))[0]
    verb = rng.choice(kind)
    thing = recipient = None
    if kind in (PERSON_VERBS, DATIVE_VERBS):
        thing = draw_person(rng, subject, "der der ein mein unser dies")
    elif verb.case is not None:
        thing = draw_thing(rng, verb)
    if kind is GIVING_VERBS:
        recipient = draw_person(rng, subject, "der der mein unser")
    time = place = ("", "")
    if not bare and rng.random() < 0.4:
        time = pair_of(rng.choice(TIMES[tense]))
    place_share = 0.6 if kind is INTRANSITIVE_VERBS else 0 if bare or recipient else 0.2
    if rng.random() < place_share:
        place = draw_place(rng)
    if tense == "modal":
        tense = rng.choice(list(MODALS))
    return Clause(subject, verb, tense, thing, recipient, time, place)


# ---- Sentences ----

Pair = tuple[str, str]


def simple(rng: random.Random) -> Pair:
    clause = draw_clause(rng)
    if clause.time[0] and rng.random() < 0.5:
        return clause.german_main(clause.time[0]), join(clause.time[1], clause.english(with_time=False))
    return clause.german_main(), clause.english()


def reported(rng: random.Random) -> Pair:
    clause, speaker = draw_clause(rng), draw_person(rng)
    says, say, english, english_plural = rng.choice(SAYING)
    german = f"{speaker.german(NOMINATIVE)} {say if speaker.plural else says}, dass {clause.german_subordinate()}"
    return german, f"{speaker.english()} {english_plural if speaker.plural else english} that {clause.english()}"


def because(rng: random.Random) -> Pair:
    main, reason = draw_clause(rng, bare=True), draw_clause(rng, bare=True)
    return f"{main.german_main()}, weil {reason.german_subordinate()}", f"{main.english()} because {reason.english()}"


def when(rng: random.Random) -> Pair:
    condition, main = draw_clause(rng, "present", bare=True), draw_clause(rng, "present", bare=True)
    first = f"wenn {condition.german_subordinate()},"
    return main.german_main(first), f"when {condition.english()}, {main.english()}"


def relative(rng: random.Random) -> Pair:
    """The subject with a clause in which it acts, or (masculine ones, whose pronoun shows it) is acted upon."""
    main = draw_clause(rng, bare=True)
    head = main.subject
    if head.gender == "m" and rng.random() < 0.5:
        inner = Clause(draw_person(rng, head), rng.choice(PERSON_VERBS), rng.choice(("present", "perfect")))
        german, english = f"den {inner.german_subordinate()}", inner.english()
    else:
        inner = draw_clause(rng, bare=True, subject=head)
        german = inner.german_subordinate(DER[head.gender][NOMINATIVE])
        english = inner.english_predicate()
    first = head.german(NOMINATIVE)
    rest = main.german_main().removeprefix(first)
    return f"{first}, {german},{rest}", f"{head.english()} that {english} {main.english_predicate()}"


KINDS = {simple: 10, reported: 2, because: 2, when: 2, relative: 3}


def draw_row(rng: random.Random) -> dict[str, str]:
    german, english = rng.choices(list(KINDS), list(KINDS.values()))[0](rng)
    return {"de": f"{german[0].upper()}{german[1:]}.", "en": f"{english[0].upper()}{english[1:]}."}


def generate_splits(seed: int = SPLIT_SEED) -> dict[str, list[dict[str, str]]]:
    """Every split's rows. No sentence of either language occurs twice, within a split or across them."""
    rng = random.Random(seed)
    seen: set[str] = set()
    splits: dict[str, list[dict[str, str]]] = {}
    for name, size in SPLIT_SIZES.items():
        rows: list[dict[str, str]] = []
        while len(rows) < size:
            row = draw_row(rng)
            if seen.isdisjoint(row.values()):
                seen.update(row.values())
                rows.append(row)
        splits[name] = rows
    return splits


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tiny world's train, validation and test sentences.")
    parser.add_argument("--folder", type=Path, default=HERE, help="folder for the three files")
    parser.add_argument("--seed", type=int, default=SPLIT_SEED)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in generate_splits(args.seed).items():
        path = args.folder / f"{name}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{path}: {len(rows)} sentences, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
