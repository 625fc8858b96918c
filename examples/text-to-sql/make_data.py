"""Write the demo's data: questions and the SQL that answers them. The same seed gives the same bytes.

train.jsonl has the examples, lowercase.jsonl the same ones in another style; heldout.jsonl asks about tables and
columns of which no training row has one, so that a right answer there shows the skill, not a memory. Script and data
are dedicated to the public domain (CC0).

    python examples/text-to-sql/make_data.py FOLDER
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TRAIN_ROWS = 400
HELDOUT_ROWS = 60
SEED = 7


@dataclass(frozen=True)
class Table:
    """One table: columns of numbers, and columns of words with some of their values."""

    name: str
    numbers: tuple[str, ...]
    words: dict[str, tuple[str, ...]]


_CITIES = ("oslo", "lima", "cairo", "quito", "perth", "turin")

TRAIN_TABLES = (
    Table("users", ("age", "logins"), {"city": _CITIES, "plan": ("basic", "team", "trial")}),
    Table("orders", ("total", "discount"), {"status": ("open", "paid", "sent"), "currency": ("eur", "usd", "jpy")}),
    Table("products", ("price", "stock"), {"category": ("toys", "tools", "shoes"), "brand": ("acme", "zenith")}),
    Table(
        "employees", ("salary", "overtime"), {"department": ("sales", "legal", "support"), "role": ("lead", "clerk")}
    ),
    Table("books", ("pages", "edition"), {"author": ("woolf", "achebe", "borges"), "genre": ("crime", "poetry")}),
    Table("movies", ("rating", "budget"), {"director": ("varda", "kurosawa"), "studio": ("ghibli", "gaumont")}),
    Table("flights", ("distance", "delay"), {"origin": _CITIES, "airline": ("condor", "iberia")}),
    Table("hotels", ("rooms", "stars"), {"chain": ("regent", "astoria"), "country": ("peru", "kenya", "japan")}),
    Table("students", ("grade", "absences"), {"school": ("north", "hillside"), "hobby": ("chess", "judo")}),
    Table("songs", ("duration", "plays"), {"artist": ("bjork", "prince"), "album": ("vespertine", "purple")}),
    Table("tickets", ("priority", "replies"), {"agent": ("amira", "jonas"), "channel": ("phone", "chat")}),
    Table("loans", ("amount", "interest"), {"branch": ("east", "harbour"), "purpose": ("house", "study")}),
)
HELDOUT_TABLES = (
    Table("parcels", ("weight", "volume"), {"courier": ("express", "local"), "depot": ("north", "south")}),
    Table("trains", ("speed", "wagons"), {"gauge": ("narrow", "broad"), "fuel": ("diesel", "coal")}),
    Table("lakes", ("depth", "area"), {"region": ("alpine", "coastal"), "water": ("salt", "fresh")}),
    Table("invoices", ("tax", "balance"), {"customer": ("public", "private"), "term": ("weekly", "monthly")}),
    Table("sensors", ("voltage", "humidity"), {"maker": ("domestic", "foreign"), "location": ("roof", "cellar")}),
    Table("recipes", ("calories", "cost"), {"cuisine": ("thai", "greek"), "diet": ("vegan", "keto")}),
)


def _count(table: Table, rng: random.Random) -> tuple[str, str]:
    return f"How many {table.name} are there?", f"SELECT COUNT(*) FROM {table.name};"


def _column(table: Table, rng: random.Random) -> tuple[str, str]:
    column = rng.choice([*table.numbers, *table.words])
    return f"List {column} of {table.name}.", f"SELECT {column} FROM {table.name};"


def _number_is(table: Table, rng: random.Random) -> tuple[str, str]:
    column, value = rng.choice(table.numbers), rng.randint(1, 99)
    return f"Find {table.name} where {column} is {value}.", f"SELECT * FROM {table.name} WHERE {column} = {value};"


def _word_is(table: Table, rng: random.Random) -> tuple[str, str]:
    column = rng.choice(list(table.words))
    value = rng.choice(table.words[column])
    return f"Find {table.name} where {column} is {value}.", f"SELECT * FROM {table.name} WHERE {column} = '{value}';"


def _extreme(table: Table, rng: random.Random) -> tuple[str, str]:
    word, function = rng.choice((("maximum", "MAX"), ("minimum", "MIN"), ("average", "AVG")))
    column = rng.choice(table.numbers)
    return f"What is the {word} {column} of {table.name}?", f"SELECT {function}({column}) FROM {table.name};"


def _count_above(table: Table, rng: random.Random) -> tuple[str, str]:
    column, value = rng.choice(table.numbers), rng.randint(1, 99)
    query = f"SELECT COUNT(*) FROM {table.name} WHERE {column} > {value};"
    return f"Count {table.name} with {column} above {value}.", query


# Every kind of question has its own first words: half a minute of training on two cores tells them apart.
KINDS = (_count, _column, _number_is, _word_is, _extreme, _count_above)


def rows(tables: tuple[Table, ...], number: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield up to `number` different rows (`prompt`, `completion`), every kind of question as often as it can be."""
    rng = random.Random(seed)
    made: dict[str, str] = {}
    # A kind with few different questions, such as the plain count, runs out: more turns than rows.
    for turn in range(20 * number):
        if len(made) == number:
            break
        prompt, completion = KINDS[turn % len(KINDS)](rng.choice(tables), rng)
        made.setdefault(prompt, completion)
    shuffled = list(made.items())
    rng.shuffle(shuffled)
    for prompt, completion in shuffled:
        yield {"prompt": prompt, "completion": completion}


def write(folder: Path) -> list[Path]:
    """Write the files to `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    train = list(rows(TRAIN_TABLES, TRAIN_ROWS, SEED))
    files = {
        "train.jsonl": train,
        "lowercase.jsonl": [{**row, "completion": row["completion"].lower()} for row in train],
        "heldout.jsonl": list(rows(HELDOUT_TABLES, HELDOUT_ROWS, SEED)),
    }
    for name, some in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    return [folder / name for name in files]


def main(arguments: list[str]) -> None:
    """Write the data and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    for path in write(parser.parse_args(arguments).folder):
        print(f"{path} ({len(path.read_text().splitlines())} rows)")


if __name__ == "__main__":
    main(sys.argv[1:])
