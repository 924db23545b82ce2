"""Makes the reports of the tiny world, and a sentence that sums each of them up.

    Harting played Kelby on Sunday. It rained from start to finish. Moss scored twice for Kelby before the break. Late
    on Harting scored once through Reid.
    Kelby beat Harting 2-1 on Sunday with two goals from Moss.

Three kinds: a match (who won is nowhere said), an accident (the injured are listed, the summary has their number) and
a vote of a council (carried or not, as more are in favour or against). Other sentences stand between, some of them
with names and numbers too, and none of those matters.

    python recipes/summarization/tiny/make_data.py    # train.jsonl, validation.jsonl, test.jsonl beside this file

The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPLIT_SIZES = {"validation": 256, "test": 512, "train": 4_000}
SPLIT_SEED = 20_240_301

TOWNS = """
Harting Kelby Marlow Denham Ashford Burley Colne Dover Epping Frome Garth Hexham Ilford Kendal Ludlow Morley Newark
Otley Penrith Ripon Selby Thirsk Wells Yarm
""".split()
PEOPLE = """
Moss Reid Bell Clark Dunn Ellis Ford Grant Hale Irving Jones King Lamb Marsh Nash Owen Price Quinn Rose Shaw Todd Vance
Ward York
""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBERS = "no one two three four five six seven eight nine ten eleven twelve".split()
TIMES = ("", "once", "twice", "three times")

Row = dict[str, str]


def put_between(rng: random.Random, facts: list[str], besides: list[str], most: int) -> str:
    """The first fact, then the others in their order with up to `most` of the sentences that do not matter."""
    sentences = list(facts)
    for sentence in rng.sample(besides, rng.randint(most - 1, most)):
        sentences.insert(rng.randint(1, len(sentences)), sentence)
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


# ---- Matches ----


def goals(rng: random.Random, team: str, scorer: str, number: int) -> str:
    if number == 0:
        return f"{team} did not score"
    when = rng.choice(("early on", "before the break", "after the break", "late on"))
    forms = (
        f"{scorer} scored {TIMES[number]} for {team} {when}",
        f"{when} {team} scored {TIMES[number]} through {scorer}",
        f"{scorer} of {team} found the net {TIMES[number]} {when}",
    )
    return rng.choice(forms)


def match(rng: random.Random) -> Row:
    (home, away), (one, other) = rng.sample(TOWNS, 2), rng.sample(PEOPLE, 2)
    referee, keeper = rng.sample([name for name in PEOPLE if name not in (one, other)], 2)
    day, (mine, yours) = rng.choice(DAYS), rng.choices(range(4), k=2)
    facts = [goals(rng, home, one, mine), goals(rng, away, other, yours)]
    rng.shuffle(facts)
    opening = rng.choice((f"{home} played {away} on {day}", f"on {day} {home} met {away}"))
    besides = [
        rng.choice(("it rained from start to finish", "the sun shone", "fog lay over the pitch")),
        f"{rng.choice(NUMBERS[2:])} thousand people came to watch",
        f"the referee was {referee}",
        f"{keeper} missed the match with a bad knee",
    ]
    if mine == yours:
        summary = f"{home} and {away} drew {mine}-{yours} on {day}."
    else:
        (best, winner, scorer), (least, loser, _) = sorted([(mine, home, one), (yours, away, other)], reverse=True)
        counted = "one goal" if best == 1 else f"{NUMBERS[best]} goals"
        summary = f"{winner} beat {loser} {best}-{least} on {day} with {counted} from {scorer}."
    return {"document": put_between(rng, [opening, *facts], besides, most=2), "summary": summary}


# ---- Accidents ----

VEHICLES = "bus lorry tram taxi van car".split()
STREETS = ("Mill Road", "Station Road", "High Street", "Bridge Street", "Park Lane", "Church Lane")
CAUSES = {  # as the report has it, and in the summary
    "there was ice on the road": "in icy weather",
    "the road was covered in snow": "in snow",
    "thick fog hid the road": "in fog",
    "one of the drivers had fallen asleep": "as a driver slept",
    "the lights at the crossing had failed": "at broken lights",
}


def accident(rng: random.Random) -> Row:
    town, elsewhere = rng.sample(TOWNS, 2)
    (first, second), day, street = rng.sample(VEHICLES, 2), rng.choice(DAYS), rng.choice(STREETS)
    cause = rng.choice(list(CAUSES))
    passengers, walkers = rng.randint(0, 4), rng.randint(0, 2)
    driver_hurt = rng.random() < 0.5
    groups = [
        f"{NUMBERS[number]} {kind}{'s' if number > 1 else ''}"
        for number, kind in ((passengers, "passenger"), (walkers, "cyclist"))
        if number
    ] + ["one driver"] * driver_hurt
    hurt = passengers + walkers + driver_hurt
    opening = rng.choice((f"a {first} hit a {second} on {street} in {town} on {day}",
                          f"on {day} a {first} ran into a {second} on {street} in {town}"))  # fmt: skip
    listed = " and ".join([", ".join(groups[:-1]), groups[-1]] if len(groups) > 1 else groups)
    injuries = f"{listed} {'was' if hurt == 1 else 'were'} hurt" if hurt else "nobody was hurt"
    besides = [
        f"an ambulance came from {elsewhere}",
        f"the road was closed for {rng.choice(NUMBERS[2:])} hours",
        f"{rng.choice(PEOPLE)}, who lives nearby, heard the noise",
        f"it is the {rng.choice(('second', 'third', 'fourth'))} accident there this year",
    ]
    people = "Nobody was" if hurt == 0 else "One person was" if hurt == 1 else f"{NUMBERS[hurt].title()} people were"
    summary = f"{people} hurt in {town} when a {first} hit a {second} {CAUSES[cause]}."
    facts = [injuries, rng.choice((f"the police say that {cause}", f"{cause}"))]
    rng.shuffle(facts)
    return {"document": put_between(rng, [opening, *facts], besides, most=2), "summary": summary}


# ---- Councils ----

PLANS = ("a new library", "a swimming pool", "a second school", "a tram line", "a bigger car park", "a skate park",
         "a night bus", "a new town hall")  # fmt: skip


def council(rng: random.Random) -> Row:
    town, (mayor, speaker), day = rng.choice(TOWNS), rng.sample(PEOPLE, 2), rng.choice(DAYS)
    plan, other_plan = rng.sample(PLANS, 2)
    in_favour, against = rng.sample(range(2, 13), 2)
    opening = rng.choice((f"the council of {town} met on {day}", f"on {day} the council met in {town}"))
    topic = rng.choice((f"it had to decide on {plan}", f"{mayor}, the mayor, had proposed {plan}"))
    votes = [f"{NUMBERS[in_favour]} members were in favour", f"{NUMBERS[against]} were against"]
    if rng.random() < 0.5:
        votes = [f"{NUMBERS[against]} members were against", f"{NUMBERS[in_favour]} were in favour"]
    besides = [
        f"{other_plan} was not discussed",
        f"{speaker} spoke for {rng.choice(NUMBERS[2:])} minutes",
        "the doors were open to the public",
        f"the next meeting is in {rng.choice(NUMBERS[2:])} weeks",
    ]
    carried = in_favour > against
    votes_counted = f"{max(in_favour, against)} votes to {min(in_favour, against)}"
    summary = f"{town} {'will get' if carried else 'will not get'} {plan} after {votes_counted} in its council."
    return {"document": put_between(rng, [opening, topic, " and ".join(votes)], besides, most=2), "summary": summary}


KINDS = (match, accident, council)


def generate_splits(seed: int = SPLIT_SEED) -> dict[str, list[Row]]:
    """Every split's rows, the kinds in turn. No document occurs twice, within a split or across them."""
    rng = random.Random(seed)
    seen: set[str] = set()
    splits: dict[str, list[Row]] = {}
    for name, size in SPLIT_SIZES.items():
        rows: list[Row] = []
        while len(rows) < size:
            row = KINDS[len(rows) % len(KINDS)](rng)
            if row["document"] not in seen:
                seen.add(row["document"])
                rows.append(row)
        rng.shuffle(rows)
        splits[name] = rows
    return splits


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tiny world's train, validation and test reports.")
    parser.add_argument("--folder", type=Path, default=HERE, help="folder for the three files")
    parser.add_argument("--seed", type=int, default=SPLIT_SEED)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in generate_splits(args.seed).items():
        path = args.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
        print(f"{path}: {len(rows)} reports, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
