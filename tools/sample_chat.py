"""Make up conversations that look like a chat history: the same words in the same order everywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator

TOPICS = {
    "bread": (
        "bread that stays flat",
        "how long to let the dough rise",
        "the oven",
        "another flour",
        "a cold kitchen",
    ),
    "bicycle": ("a chain that slips", "which oil to use", "the gears", "a spare link", "rainy rides"),
    "garden": ("yellow tomato leaves", "when to water", "the soil", "compost", "a dry summer"),
    "python": ("a loop that is too slow", "how to read a large file", "the list", "a generator", "old code"),
    "travel": ("a week in Lisbon", "which train to take", "the hotel", "a later train", "bad weather"),
    "guitar": ("strings that buzz", "how often to practise", "the neck", "a capo", "small hands"),
}
ASK = (
    "I have a question about {0}.",
    "Can you help me with {0}? I have tried {3} already and it did not change much.",
    "What would you do about {0} when there is also {4} to think of?",
    "And {1}? I never know where to start.",
    "Is {2} the reason, or am I looking in the wrong place?",
)
ANSWER = (
    "Of course. With {0} the first thing to look at is {2}: most of the time the answer is there.",
    "That happens often with {4}. Start small: change one thing, for instance {3}, and see what it does.",
    "There is no single rule for {1}, but a good habit is to write down what you did and what came of it.",
    "I would not worry. Take {3}, check {2} once more, and give it a day before you decide.",
    "You mentioned {4} before. If that is still so, it explains {0} better than {2} does.",
)
CLOSE = (
    "Thank you, that helps.",
    "Good idea, I will try that tonight.",
    "Great. Please remember this for next time.",
)


def pick(rng: random.Random, choices: tuple[str, ...]) -> str:
    """Choose by ``random()`` alone, whose sequence Python guarantees."""
    return choices[int(rng.random() * len(choices))]


def conversation(topic: str, seed: str, turns: int = 5) -> str:
    """Return one conversation as ``User:`` and ``Assistant:`` lines."""
    rng = random.Random(f"{topic} {seed}")
    words = TOPICS[topic]
    lines = []
    for _ in range(turns):
        lines += [f"User: {pick(rng, ASK).format(*words)}", f"Assistant: {pick(rng, ANSWER).format(*words)}"]
    return "\n".join([*lines, f"User: {pick(rng, CLOSE)}"]) + "\n"


def history(days: int, turns: int = 4) -> Iterator[tuple[str, str]]:
    """Yield ``(key, text)`` for one conversation a day."""
    topics = tuple(TOPICS)
    for day in range(days):
        topic = topics[day % len(topics)]
        yield f"chat/{day + 1:03d}-{topic}", conversation(topic, str(day), turns=turns + day % 4)
