"""Short templated stories: running text of the built-in world, with both structure and entropy."""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PEOPLE = (
    ("Tom", "he", "his"), ("Anna", "she", "her"), ("Ben", "he", "his"), ("Lily", "she", "her"),
    ("Sam", "he", "his"), ("Mia", "she", "her"), ("Max", "he", "his"), ("Zoe", "she", "her"),
    ("Leo", "he", "his"), ("Eva", "she", "her"), ("Tim", "he", "his"), ("Sue", "she", "her"),
)  # fmt: skip
_PLACES = _words("park garden kitchen school beach forest barn shop harbour bridge station lake")
_THINGS = _words("kite ball hat book basket ladder drum mirror blanket bucket lamp spoon boat coat bell whistle")
_COLOURS = _words("red blue green yellow white black brown grey")
_SIZES = _words("small big old new heavy broken shiny")
_FOODS = _words("bread soup cheese apples pears cake eggs plums beans porridge")
_ANIMALS = _words("dog cat horse duck goat mouse owl hen rabbit fox")
_WEATHER = {
    "rainy": ("umbrella", "wet"),
    "sunny": ("hat", "warm"),
    "cold": ("scarf", "cold"),
    "windy": ("coat", "tired"),
    "snowy": ("gloves", "cold"),
    "foggy": ("lantern", "lost"),
}
_TIMES = (
    "In the morning",
    "In the evening",
    "After lunch",
    "On Monday",
    "On Sunday",
    "At noon",
    "One day",
)
_FEELINGS = _words("happy sad proud angry surprised hungry sleepy curious")


def tell(rng: random.Random) -> str:
    """One story of two or three sentences; later sentences refer back to the first."""
    (one, he, his), (two, _, _) = rng.sample(_PEOPLE, 2)
    pick = rng.choice
    place, thing, animal, food, feeling = (
        pick(_PLACES),
        pick(_THINGS),
        pick(_ANIMALS),
        pick(_FOODS),
        pick(_FEELINGS),
    )
    look = f"{pick(_SIZES)} {pick(_COLOURS)}"
    weather = pick(tuple(_WEATHER))
    tool, state = _WEATHER[weather]
    openings = (
        f"{pick(_TIMES)} {one} found a {look} {thing} in the {place}.",
        f"{pick(_TIMES)} {one} took a {look} {thing} to the {place}.",
        f"{one} lost a {look} {thing} near the {place}.",
    )
    middles = (
        f"{he.capitalize()} gave the {thing} to {two}, who was very {feeling}.",
        f"A {animal} came and ran away with the {thing}, and {two} ran after the {animal}.",
        f"{two} wanted the {thing} too, so {he} swapped it for some {food}.",
        f"{he.capitalize()} and {two} hid the {thing} behind the {place}.",
    )
    weathers = (
        f"It was a {weather} day, so {one} took {his} {tool} and walked to the {place}.",
        f"The day was {weather}, and {one} forgot {his} {tool} at the {place}.",
    )
    meals = (
        f"{two} cooked some {food} and shared the {food} with {one} and a {animal}.",
        f"{two} met a {animal} there and fed it some {food}.",
        f"{one} and {two} ate {food} together.",
    )
    endings = (
        f"Then {one} went home and felt {feeling}.",
        f"In the end {he} was {feeling} and {two} was {pick(_FEELINGS)}.",
        f"{two} went back to the {place} alone.",
        "",
    )
    if rng.random() < 0.5:
        parts = [pick(openings), pick(middles), pick(endings)]
    else:
        close = pick(
            (
                f"{one} came home {state}.",
                f"In the end {he} was {state}.",
                f"{two} felt {feeling}.",
            )
        )
        parts = [pick(weathers), pick(meals), close]
    return " ".join(part for part in parts if part)
