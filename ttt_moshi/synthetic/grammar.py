"""A small language to talk in: facts that come back later, stories that stay on their subject, grammar that agrees.

Few words, used often, so that a small model can learn them from minutes of speech; long-range structure, so that memory
pays: what somebody says early in a dialogue is asked for later, and a story ends with what it began with.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

WOMEN = ("Alice", "Carla", "Emma")
MEN = ("Bob", "David", "Frank")
NAMES = WOMEN + MEN
CITIES = ("Paris", "London", "Berlin", "Madrid", "Oslo", "Dublin")
ANIMALS = ("dog", "cat", "bird", "horse")
PLACES = ("park", "garden", "river", "school")
FOODS = ("bread", "soup", "rice", "cake")
NUMBERS = ("two", "three", "four", "five", "six")
ADJECTIVES = ("small", "big", "old", "happy")
VERBS = ("run", "sleep", "sing", "walk")

VOCABULARY = (
    *NAMES,
    *CITIES,
    *ANIMALS,
    *(animal + "s" for animal in ANIMALS),
    *PLACES,
    *FOODS,
    *NUMBERS,
    *ADJECTIVES,
    *VERBS,
    *(verb + "s" for verb in VERBS),
)
BACKCHANNELS = ("Mm hmm.", "Right.", "I see.", "Really?")


@dataclass(frozen=True)
class Turn:
    """One speaker's uninterrupted speech."""

    speaker: str
    """`moshi` or `user`"""
    text: str
    backchannel: bool = False
    """whether it is spoken into the other's turn, which goes on"""


@dataclass(frozen=True)
class Person:
    """Somebody and the facts that are told about them."""

    name: str
    city: str
    animal: str
    number: str

    @property
    def reflexive(self) -> str:
        """The pronoun that agrees with the name."""
        return "herself" if self.name in WOMEN else "himself"


def random_person(rng: random.Random, unlike: Person | None = None) -> Person:
    """Facts drawn independently; none of them shared with `unlike`."""

    taken = () if unlike is None else (unlike.name, unlike.city, unlike.animal, unlike.number)
    name, city, animal, number = (
        rng.choice([value for value in values if value not in taken]) for values in (NAMES, CITIES, ANIMALS, NUMBERS)
    )
    return Person(name, city, animal, number)


def agreement_sentence(rng: random.Random, person: Person) -> str:
    """A sentence about somebody's animals in which determiner, noun and verb must agree."""
    animal, verb = person.animal, rng.choice(VERBS)
    place, adjective = rng.choice(PLACES), rng.choice(ADJECTIVES)
    return rng.choice(
        (
            f"This {adjective} {animal} {verb}s in the {place}.",
            f"These {adjective} {animal}s {verb} in the {place}.",
            f"The {animal} {verb}s every day.",
            f"The {animal}s {verb} every day.",
            f"{person.number.capitalize()} {animal}s {verb} in the {place}.",
        )
    )


def story(rng: random.Random, person: Person, middle: int = 2) -> list[str]:
    """Sentences about one person. The last one can be told from the first ones."""
    food = rng.choice(FOODS)
    opening = [f"{person.name} lives in {person.city}.", f"{person.name} has {person.number} {person.animal}s."]
    told = [agreement_sentence(rng, person) for _ in range(middle)]
    meal = f"{person.name} made {person.reflexive} some {food}."
    return [*opening, *told, meal, story_ending(rng, person)]


def story_ending(rng: random.Random, person: Person) -> str:
    """A last sentence that fits only stories about this person."""
    return rng.choice(
        (
            f"So {person.name} and the {person.animal}s love {person.city}.",
            f"In the end {person.name} walks with the {person.number} {person.animal}s in {person.city}.",
        )
    )


@dataclass(frozen=True)
class Tale:
    """A short story whose sentences take up what the one before ended with, so that its end can be told."""

    name: str
    place: str
    pet: str
    seeing: str
    seen: str
    """the animal that the end is about"""
    unseen: str
    """the animal that another end would be about"""
    known: bool
    """whether the tale begins with both of these animals; otherwise it begins with the pet"""

    @property
    def told(self) -> tuple[str, ...]:
        """Four sentences."""
        if self.known:
            one, other = sorted((self.seen, self.unseen))
            opening = (f"{self.name} has a {one} and a {other}.", f"They are in the {self.place}.")
        else:
            opening = (f"{self.name} has a {self.pet}.", f"The {self.pet} is in the {self.place}.")
        return (*opening, f"The {self.place} has a {self.seeing}.", f"The {self.seeing} sees the {self.seen}.")

    @property
    def ending(self) -> str:
        """The fifth sentence."""
        return f"The {self.seen} is happy."

    @property
    def twin(self) -> Tale:
        """The same tale with the other animal seen: equal up to the last word before the end."""
        return replace(self, seen=self.unseen, unseen=self.seen)


def tale(rng: random.Random, known: bool) -> Tale:
    """A tale of random words."""
    name, place = rng.choice(NAMES), rng.choice(PLACES)
    pet, seeing, seen, unseen = rng.sample(ANIMALS, 4)
    return Tale(name, place, pet, seeing, seen, unseen, known)


def monologue(rng: random.Random, words: int = 10, sentences: int = 10) -> list[Turn]:
    """Moshi alone: some words, and some sentences about somebody's animals and meals."""
    said = [f"{word.capitalize()}." for word in rng.sample(VOCABULARY, words)]
    for _ in range(sentences):
        person = random_person(rng)
        meal = f"{person.name} made {person.reflexive} some {rng.choice(FOODS)}."
        said.append(rng.choice((agreement_sentence(rng, person), agreement_sentence(rng, person), meal)))
    return [Turn("moshi", text) for text in said]


def tales(rng: random.Random, count: int = 5) -> list[Turn]:
    """Moshi alone, telling one tale after the other."""
    told = [tale(rng, known=rng.random() < 0.5) for _ in range(count)]
    return [Turn("moshi", text) for one in told for text in (*one.told, one.ending)]


def dialogue(rng: random.Random, questions: int = 3, stories: int = 1) -> list[Turn]:
    """A conversation: the user's facts, Moshi's stories with backchannels, then questions about both."""
    user = random_person(rng)
    hero = random_person(rng, unlike=user)
    turns = [
        Turn("moshi", "Hello, I am Moshi. What is your name?"),
        Turn("user", f"My name is {user.name}."),
        Turn("moshi", f"Nice to meet you {user.name}. Where do you live?"),
        Turn("user", f"I live in {user.city} with {user.number} {user.animal}s."),
        Turn("moshi", f"{user.number.capitalize()} {user.animal}s in {user.city}, that is nice."),
    ]
    for _ in range(stories):
        turns.append(Turn("moshi", "Let me tell you a story."))
        for sentence in story(rng, hero, middle=rng.choice((1, 2))):
            turns.append(Turn("moshi", sentence))
            if rng.random() < 0.3:
                turns.append(Turn("user", rng.choice(BACKCHANNELS), backchannel=True))
    recall = [
        ("What is my name?", f"Your name is {user.name}."),
        ("Where do I live?", f"You live in {user.city}."),
        ("What do I have?", f"You have {user.number} {user.animal}s."),
        ("Who lives in " + hero.city + "?", f"{hero.name} lives in {hero.city}."),
        ("What does " + hero.name + " have?", f"{hero.name} has {hero.number} {hero.animal}s."),
    ]
    for question, answer in rng.sample(recall, min(questions, len(recall))):
        turns += [Turn("user", question), Turn("moshi", answer)]
    turns += [Turn("user", "Goodbye Moshi."), Turn("moshi", f"Goodbye {user.name}.")]
    return turns
