"""Makes the demo pairs: `python -m scripts.make_demo`.

Sentences are events (who, what, where, told in one of three ways), and a pair's score from 0 to 5 follows from what was
changed between its sentences, never from an encoder, which would only measure itself:

    5     the same event told in another way
    -0.6  a detail stands in one of them only
    -0.9  another place
    -1.3  another agent
    -1.6  another thing
    1.0   another event of the same topic; 1.4 with the same agent
    0.0   another topic; 0.3 with the same agent

Changes add up, and within an event no score falls below 1.2. Splits share no event, so no template and no sentence.
It is a demo, so that everything runs without a network, and no benchmark.
"""

import argparse
import csv
import io
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.demo_frames import AGENTS, DETAILS, FRAMES, Frame

SEED = 20261124
SIZES = {"train": 1600, "dev": 320, "test": 320}
FOLDER = Path(__file__).resolve().parent.parent / "twinsqueeze" / "data" / "demo"

DETAIL, PLACE, AGENT, THING = 0.6, 0.9, 1.3, 1.6
LOWEST_SAME_EVENT, SAME_TOPIC, OTHER_TOPIC = 1.2, 1.0, 0.0
# How often which parts are changed; "" is a paraphrase.
CHANGES = ("", "", "d", "d", "p", "p", "a", "o", "dp", "da", "do", "pa", "po", "ao", "pao", "dpao")
# Of ten pairs so many are of one event, of one topic, of two topics.
KINDS = ("event",) * 7 + ("topic",) * 2 + ("other",)


@dataclass(frozen=True)
class Event:
    """One thing that happens, before it is told."""

    frame: Frame
    agent: str
    thing: str
    place: str
    detail: str | None = None

    def tell(self, form: int) -> str:
        """The event as a sentence, in one of the frame's forms."""
        text = self.frame.forms[form].format(a=self.agent, o=self.thing, p=self.place)
        if self.detail:
            text = f"{text} {self.detail}"
        return f"{text[0].upper()}{text[1:]}."


def draw(frame: Frame, random_: random.Random) -> Event:
    """An event of a frame."""
    return Event(frame, random_.choice(AGENTS), random_.choice(frame.objects), random_.choice(frame.places))


def change(event: Event, parts: str, random_: random.Random) -> tuple[Event, float]:
    """An event with some parts changed, and the score of the two."""
    score = 5.0

    def other(values: tuple[str, ...], value: str) -> str:
        return random_.choice([v for v in values if v != value])

    if "d" in parts:
        event, score = replace(event, detail=random_.choice(DETAILS)), score - DETAIL
    if "p" in parts:
        event, score = replace(event, place=other(event.frame.places, event.place)), score - PLACE
    if "a" in parts:
        event, score = replace(event, agent=other(AGENTS, event.agent)), score - AGENT
    if "o" in parts:
        event, score = replace(event, thing=other(event.frame.objects, event.thing)), score - THING
    return event, max(score, LOWEST_SAME_EVENT)


def make_pair(frames: tuple[Frame, ...], random_: random.Random) -> tuple[str, str, float]:
    """Two sentences and their score."""
    frame = random_.choice(frames)
    event = draw(frame, random_)
    kind = random_.choice(KINDS)
    if kind == "event":
        second, score = change(event, random_.choice(CHANGES), random_)
        first_form, second_form = random_.sample(range(3), 2)
        pair = [event.tell(first_form), second.tell(second_form)]
        random_.shuffle(pair)
        return pair[0], pair[1], round(score, 2)
    others = [f for f in frames if f != frame and (f.topic == frame.topic) == (kind == "topic")]
    second = draw(random_.choice(others), random_)
    score = SAME_TOPIC if kind == "topic" else OTHER_TOPIC
    if second.agent == event.agent:
        score += 0.4 if kind == "topic" else 0.3
    return event.tell(random_.randrange(3)), second.tell(random_.randrange(3)), round(score, 2)


def make_split(split: str) -> str:
    """The CSV text of a split."""
    random_ = random.Random(f"{SEED} {split}")
    seen: set[frozenset[str]] = set()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sentence1", "sentence2", "score"])
    while len(seen) < SIZES[split]:
        first, second, score = make_pair(FRAMES[split], random_)
        if frozenset((first, second)) not in seen:
            seen.add(frozenset((first, second)))
            writer.writerow([first, second, score])
    return text.getvalue()


def check_frames() -> None:
    """Makes sure that no form is shared between splits, and that each topic has another event to compare with."""
    forms = [form for frames in FRAMES.values() for frame in frames for form in frame.forms]
    assert len(set(forms)) == len(forms), "a form stands twice"
    for split, frames in FRAMES.items():
        topics = [frame.topic for frame in frames]
        assert all(topics.count(topic) > 1 for topic in topics), f"{split} has a topic with one event"


def main() -> None:
    """Writes the files, or checks that they are what this script makes."""
    parser = argparse.ArgumentParser(description="Makes the demo pairs that come with TwinSqueeze.")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder for train.csv, dev.csv and test.csv")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the files are others")
    arguments = parser.parse_args()
    check_frames()
    for split in FRAMES:
        path = arguments.output / f"{split}.csv"
        text = make_split(split)
        if arguments.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path} is not what {Path(__file__).name} makes")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
