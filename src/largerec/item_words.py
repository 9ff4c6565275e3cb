"""Words of the generated items: categories, titles of series, descriptions."""

from __future__ import annotations

import numpy as np

CATEGORIES: dict[str, tuple[str, ...]] = {
    "Mystery novels": ("Inspector", "Alibi", "Lighthouse", "Witness", "Cipher", "Manor", "Locksmith", "Verdict"),
    "Space operas": ("Nebula", "Starship", "Orbit", "Colony", "Comet", "Admiral", "Moonbase", "Signal"),
    "Fantasy sagas": ("Dragon", "Sorcerer", "Throne", "Forest", "Amulet", "Kingdom", "Prophecy", "Griffin"),
    "Cook books": ("Kitchen", "Harvest", "Bakery", "Spice Rack", "Picnic", "Noodle", "Orchard", "Feast"),
    "Travel guides": ("Coast", "Island", "Railway", "Valley", "Harbour", "Desert", "Summit", "Old Town"),
    "Strategy games": ("Empire", "Settlers", "Tower", "Caravan", "Citadel", "Armada", "Frontier", "Dynasty"),
    "Puzzle games": ("Maze", "Tiles", "Lantern", "Clockwork", "Mirror", "Labyrinth", "Riddle", "Domino"),
    "Jazz records": ("Quartet", "Nocturne", "Saxophone", "Avenue", "Midnight", "Trumpet", "Ballroom", "Rhythm"),
    "Documentaries": ("Ocean", "Glacier", "Savanna", "Archive", "Volcano", "Rainforest", "Migration", "Reef"),
    "Romance films": ("Letter", "Summer", "Promise", "Wedding", "Serenade", "Garden", "Reunion", "Waltz"),
    "Thriller series": ("Agent", "Hostage", "Conspiracy", "Border", "Ransom", "Shadow", "Pursuit", "Informant"),
    "Animation": ("Robot", "Penguin", "Balloon", "Toymaker", "Rocket", "Hedgehog", "Circus", "Snowman"),
    "Gardening": ("Rose Bed", "Greenhouse", "Meadow", "Herb Patch", "Pond", "Hedge", "Terrace", "Wildflower"),
    "Woodworking": ("Workbench", "Cabinet", "Chisel", "Rocking Chair", "Treehouse", "Dovetail", "Birdhouse", "Canoe"),
    "Fitness": ("Marathon", "Yoga Mat", "Trail", "Kettlebell", "Sprint", "Balance", "Swim", "Stretch"),
    "History": ("Republic", "Pharaoh", "Voyage", "Printing Press", "Revolution", "Silk Road", "Fortress", "Expedition"),
}
ADJECTIVES = (
    "Silent", "Golden", "Hidden", "Crimson", "Northern", "Endless", "Little", "Forgotten", "Bright", "Wandering", "Secret",
    "Ancient", "Lucky", "Velvet", "Broken", "Distant", "Merry", "Hollow", "Electric", "Gentle",
    "Restless", "Painted", "Last", "Curious",
)  # fmt: skip

MOODS = (
    "quiet evenings",
    "long journeys",
    "rainy weekends",
    "curious minds",
    "the whole family",
    "patient beginners",
    "old hands",
)
PRICE_WORDS = ("A bargain", "Fairly priced", "A treat")


def category_names(count: int) -> list[str]:
    """Names of so many categories; beyond the known ones they are numbered."""
    known = list(CATEGORIES)
    return [known[c] if c < len(known) else f"{known[c % len(known)]} {c // len(known) + 1}" for c in range(count)]


def series_titles(rng: np.random.Generator, category: int, lengths: list[int]) -> list[str]:
    """Titles of the series of a category, one after another: "The Golden Maze", "The Golden Maze, Part 2", ..."""
    nouns = CATEGORIES[list(CATEGORIES)[category % len(CATEGORIES)]]
    pairs = rng.permutation(len(ADJECTIVES) * len(nouns))
    titles = []
    for series, length in enumerate(lengths):
        pair, edition = int(pairs[series % len(pairs)]), series // len(pairs)
        title = f"The {ADJECTIVES[pair % len(ADJECTIVES)]} {nouns[pair // len(ADJECTIVES)]}"
        title += f" (edition {edition + 1})" if edition else ""
        titles += [title if part == 0 else f"{title}, Part {part + 1}" for part in range(length)]
    return titles


def descriptions(rng: np.random.Generator, titles: list[str], categories: list[str], price_level_V: np.ndarray) -> list[str]:
    """One sentence or two an item: its category, its series and its price (level 0, 1 or 2) in words."""
    mood_V = rng.integers(0, len(MOODS), len(titles)).tolist()
    found = []
    for title, category, mood, level in zip(titles, categories, mood_V, price_level_V.tolist(), strict=True):
        series, _, part = title.partition(", Part ")
        what = f"continues {series} (part {part})" if part else f"begins with {series.removeprefix('The ').lower()}"
        found.append(f"{PRICE_WORDS[level]} among our {category.lower()}: it {what}. For {MOODS[mood]}.")
    return found
