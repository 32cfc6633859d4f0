"""The text that the tiny models learn: documents of three domains, made from a seed.

Arithmetic, program code and prose share few words, so what a router does with one can be told from
what it does with another. A document is a prompt and the answer that follows from it. The same
seed gives the same documents in every Python: only `random.Random.random` is drawn from, whose
values Python guarantees (`choice` and `shuffle` have changed).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["DOMAINS", "Document", "document"]

T = TypeVar("T")


class Document(NamedTuple):
    """What a model is asked, and how the text goes on."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """Both, as they are learned."""
        return self.prompt + self.answer


class _Dice:
    """Draws that depend on nothing but `Random.random`."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)  # noqa: S311 - text, no secrets

    def below(self, end: int) -> int:
        return int(self._random.random() * end)

    def between(self, first: int, last: int) -> int:
        return first + self.below(last - first + 1)

    def one_of(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def some_of(self, values: Sequence[T], count: int) -> list[T]:
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def document(domain: str, seed: str) -> Document:
    """Make the document that `seed` stands for, such as `train/17`."""
    return DOMAINS[domain](_Dice(f"{domain}/{seed}"))


# Arithmetic: lines of sums, of which the last ones are the answer.


_LOW, _HIGH = 20, 80
"""A running total turns where it would leave these."""


def _arithmetic(dice: _Dice) -> Document:
    lines = dice.one_of((_running_total, _counting, _single_sums, _ordering))(dice)
    answered = max(1, len(lines) // 4)
    return Document("\n".join(lines[:-answered]), "\n" + "\n".join(lines[-answered:]) + "\n")


def _running_total(dice: _Dice) -> list[str]:
    total = dice.between(10, 60)
    lines = [f"start {total}"]
    for _ in range(dice.between(6, 9)):
        change = dice.between(1, 9)
        sign = "-" if total > _HIGH or (total > _LOW and dice.below(2)) else "+"
        after = total + change if sign == "+" else total - change
        lines.append(f"{total} {sign} {change} = {after}")
        total = after
    return lines


def _counting(dice: _Dice) -> list[str]:
    lines = []
    for _ in range(dice.between(4, 6)):
        step, first = dice.between(1, 5), dice.between(0, 40)
        terms = " , ".join(str(first + step * place) for place in range(dice.between(5, 8)))
        lines.append(f"by {step} : {terms}")
    return lines


def _single_sums(dice: _Dice) -> list[str]:
    lines = []
    for _ in range(dice.between(6, 9)):
        left, right = dice.between(0, 12), dice.between(0, 12)
        sign, value = dice.one_of(
            (("+", left + right), ("*", left * right), ("-", max(left, right) - min(left, right)))
        )
        left, right = (max(left, right), min(left, right)) if sign == "-" else (left, right)
        lines.append(f"{left} {sign} {right} = {value}")
    return lines


def _ordering(dice: _Dice) -> list[str]:
    lines = []
    for _ in range(dice.between(4, 6)):
        numbers = dice.some_of(range(30), 4)
        lines.append(f"{' '.join(map(str, numbers))} -> {' '.join(map(str, sorted(numbers)))}")
    return lines


# Code: one function of Python after the other, the last of which is the answer.

_VERBS = ("get", "find", "read", "count", "make", "check", "load", "parse", "merge", "update")
_THINGS = (
    *("item", "line", "name", "value", "node", "key", "record", "field", "token", "path"),
    *("event", "option", "result", "entry", "buffer", "index", "widget", "header", "module"),
)
_LISTS = {thing: f"{thing[:-1]}ies" if thing == "entry" else f"{thing}s" for thing in _THINGS}
_ERRORS = ("ValueError", "TypeError", "KeyError", "IndexError")
_TESTS = ("is None", "is not None", "== 0", "> 0", "in seen", "not in seen")


def _code(dice: _Dice) -> Document:
    shapes = (_loop, _total, _guard, _class, _attempt)
    first, second = (dice.one_of(shapes)(dice) for _ in range(2))
    # The head of the last function belongs to the prompt: its body follows from the name.
    head, _, body = second.partition("\n")
    return Document(f"{first}\n\n{head}", f"\n{body}\n")


def _loop(dice: _Dice) -> str:
    thing, verb = dice.one_of(_THINGS), dice.one_of(_VERBS)
    many, test = _LISTS[thing], dice.one_of(_TESTS)
    return (
        f"def {verb}_{many}({many}, seen):\n"
        f"    result = []\n"
        f"    for {thing} in {many}:\n"
        f"        if {thing} {test}:\n"
        f"            result.append({thing})\n"
        f"    return result"
    )


def _total(dice: _Dice) -> str:
    thing, field = dice.some_of(_THINGS, 2)
    many = _LISTS[thing]
    return (
        f"def total_{field}({many}):\n"
        f"    total = 0\n"
        f"    for {thing} in {many}:\n"
        f"        total += {thing}.{field}\n"
        f"    return total"
    )


def _guard(dice: _Dice) -> str:
    thing, verb, error = dice.one_of(_THINGS), dice.one_of(_VERBS), dice.one_of(_ERRORS)
    return (
        f"def {verb}_{thing}(self, {thing}):\n"
        f"    if not isinstance({thing}, str):\n"
        f'        raise {error}("{thing} must be a string")\n'
        f"    self.{thing} = {thing}\n"
        f"    return self.{thing}"
    )


def _class(dice: _Dice) -> str:
    thing, field = dice.some_of(_THINGS, 2)
    return (
        f"class {thing.title()}(object):\n"
        f"    def __init__(self, {field}=None):\n"
        f"        self.{field} = {field}\n"
        f"    def __repr__(self):\n"
        f"        return str(self.{field})"
    )


def _attempt(dice: _Dice) -> str:
    thing, verb, error = dice.one_of(_THINGS), dice.one_of(_VERBS), dice.one_of(_ERRORS)
    return (
        f"def {verb}_{thing}({_LISTS[thing]}, default=None):\n"
        f"    try:\n"
        f"        return {_LISTS[thing]}[default]\n"
        f"    except {error}:\n"
        f"        return default"
    )


# Prose: sentences about one place; whoever is named at first is whom the answer is about.

_PLACES: Mapping[str, tuple[str, str, str]] = {
    "harbour": (
        "boat sailor gull rope anchor captain wave storm net lighthouse",
        "sailed pulled watched painted followed mended",
        "salty grey wooden heavy distant",
    ),
    "kitchen": (
        "cook bread spoon oven apple kettle baker pan onion table",
        "baked tasted stirred carried washed served",
        "warm sweet clean fresh hungry",
    ),
    "garden": (
        "flower gardener bee hedge seed rose spade bird path tree",
        "planted watered counted cut found smelled",
        "green sunny quiet yellow wild",
    ),
    "station": (
        "train driver ticket platform whistle porter signal coach clock traveller",
        "missed caught stopped heard called boarded",
        "late early noisy crowded long",
    ),
    "library": (
        "book reader shelf page letter writer lamp story map poem",
        "opened closed borrowed returned wrote copied",
        "old silent dusty thick famous",
    ),
    "mountain": (
        "goat climber stone river snow shepherd cloud bridge cave eagle",
        "climbed crossed reached saw feared left",
        "steep cold white narrow lonely",
    ),
}
_NAMES = ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Henry")
_WHEN = (
    *("in the morning", "at noon", "in the evening", "at night", "every day", "last winter"),
    *("after the rain", "before the war", "on Sunday"),
)
_FEELINGS = ("happy", "tired", "proud", "afraid", "glad", "sad")


class _Scene:
    """A place with its words, and who is there."""

    def __init__(self, dice: _Dice) -> None:
        self.place = dice.one_of(tuple(_PLACES))
        self.who = dice.one_of(_NAMES)
        self.nouns, self.verbs, self.adjectives = (words.split() for words in _PLACES[self.place])
        self._dice = dice

    def thing(self) -> str:
        noun = self._dice.one_of(self.nouns)
        if self._dice.below(2):
            return f"the {noun}"
        return f"the {self._dice.one_of(self.adjectives)} {noun}"

    def did(self) -> str:
        return f"{self._dice.one_of(self.verbs)} {self.thing()}"


def _prose(dice: _Dice) -> Document:
    scene = _Scene(dice)
    first = f"{scene.who} lived near the {scene.place}."
    middle = [dice.one_of(_SENTENCES)(scene, dice) for _ in range(dice.between(2, 4))]
    feeling = dice.one_of(_FEELINGS)
    last = f" So {scene.who} {scene.did()}, went home from the {scene.place} and was {feeling}."
    return Document(" ".join((first, *middle)), last)


_SENTENCES: Sequence[Callable[[_Scene, _Dice], str]] = (
    lambda scene, dice: f"{dice.one_of(_WHEN).capitalize()}, {scene.who} {scene.did()}.",
    lambda scene, dice: f"{scene.thing().capitalize()} was {dice.one_of(scene.adjectives)}.",
    lambda scene, dice: f"{scene.who} {scene.did()} and {scene.did()} {dice.one_of(_WHEN)}.",
    lambda scene, dice: (
        f'"Have you seen {scene.thing()}?" asked {scene.who}, who was {dice.one_of(_FEELINGS)}.'
    ),
    lambda scene, dice: (
        f"There was {scene.thing()} that {scene.who} never {dice.one_of(scene.verbs)}, "
        f"but {scene.thing()} was {dice.one_of(scene.adjectives)}."
    ),
)

DOMAINS: Mapping[str, Callable[[_Dice], Document]] = {
    "arithmetic": _arithmetic,
    "code": _code,
    "prose": _prose,
}
"""How a document of each is made."""
