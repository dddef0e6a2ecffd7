"""Writes the page of all settings: the papers' and the released values beside those of our recipes and presets.

    python docs/settings.py

makes `docs/methods/settings.md` of `settings.yaml` and `sentences.yaml` beside it, of `recipes/` and of the presets. A
test makes the page anew and compares, so that it cannot go stale.
"""

import pkgutil
from dataclasses import MISSING, fields
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "methods"
PAGE = FOLDER / "settings.md"
PROCESSES = 8  # on which the papers train, and for which the recipes are written
UNSTATED = ("-", "not stated")

HEAD = """# Every setting: the papers, the released code, and ours

Look up what each recipe sets, what the paper and the released code say, and why we depart where we do.
`python docs/settings.py` makes this page from the recipes, the presets and two tables: `settings.yaml` has the
published values, `sentences.yaml` the places in the code. A test checks that it is up to date.

The last column says whose value ours is: the **paper**'s, the **released** code's, or, where it is neither, **ours**
and why. Batches are those of 8 processes, as in the papers. Sources are sections of the facts that were collected:
`unime` on UniME and UniME-V2, `related` on SaHa and VLM2Vec."""


def config_class(recipe: str):
    """The dataclasses of a recipe's settings."""
    from trl import ModelConfig

    from unime.mining.settings import MiningConfig
    from unime.trainers.stage import StageArguments

    if recipe.startswith("mining/"):
        return (MiningConfig,)

    # `unime-v2/alignment-7b` is a recipe of the stage `alignment`
    stage = recipe.partition("/")[2].split("-")[0]
    config = pkgutil.resolve_name(f"unime.trainers.{stage}:{stage.capitalize()}Config")
    return config, StageArguments, ModelConfig


def setting_of(recipe: str, name: str):
    """The value of a setting in a recipe: what it says, or the default."""
    settings = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"))

    # papers state the batch of all processes, which no recipe writes down
    if name == "batch":
        rows = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
        return rows * PROCESSES

    if name in settings:
        return settings[name]

    for config in config_class(recipe):
        for field in fields(config):
            if field.name == name:
                return field.default if field.default is not MISSING else field.default_factory()
    raise ValueError(f"{recipe} has no setting {name}.")


def looked_up(name: str):
    """A field of a preset (`preset.query.text`), or a name of the package (`module:NAME`)."""
    if ":" in name:
        return pkgutil.resolve_name(f"unime.{name}")

    from unime.prompts_unime import PRESETS

    # names of presets have dots themselves
    preset = max((key for key in PRESETS if name.startswith(f"{key}.")), key=len)
    value = PRESETS[preset]
    for attribute in name.removeprefix(f"{preset}.").split("."):
        value = getattr(value, attribute)
    return value


def readable(value) -> str:
    """A value as the page writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(readable, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {readable(entry)}" for name, entry in value.items()) or "none"
    if value in (None, ""):
        return "none"

    # enumerations have a value; a line break would end the row of a table
    return str(getattr(value, "value", value)).replace("\n", "⏎")


def agrees(ours: str, stated: str) -> bool:
    """Whether a published value, without what stands behind it in brackets, is ours."""
    plain = stated.partition(" (")[0]
    return stated not in UNSTATED and ours in (stated, plain)


def origin(ours: str, row: dict) -> str:
    """Whose value ours is."""
    if agrees(ours, readable(row["paper"])):
        return "paper"

    released = readable(row["released"])
    if released == "the same":
        released = readable(row["paper"])
    return "released" if agrees(ours, released) else "ours"


def table_row(row: dict, recipes: list[str]) -> str:
    """A line of a table.

    Raises:
        ValueError: a value is neither the paper's nor the released one, and no reason is given.
    """
    values = {}  # our value -> the recipes that have it
    if recipes:
        for recipe in recipes:
            values.setdefault(readable(setting_of(recipe, row["ours"])), []).append(recipe)
    else:
        values[readable(looked_up(row["ours"]))] = []

    # where recipes differ, each value stands with those that have it
    ours = []
    origins = []
    for value, names in values.items():
        owner = origin(value, row)
        if owner == "ours" and "reason" not in row:
            raise ValueError(f"{row['setting']} is {value}, which is neither published value; give a reason.")
        ours.append(code(value) if len(values) == 1 else f"{code(value)} ({', '.join(names)})")
        origins.append(f"**{owner}**")

    verdict = ", ".join(dict.fromkeys(origins))
    if "**ours**" in origins:
        verdict += f": {row['reason']}"

    cells = [row["setting"], code(readable(row["paper"])), code(readable(row["released"]))]
    cells += ["; ".join(ours), row["source"], verdict]
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(escaped) + " |"


def code(text: str) -> str:
    """A value in the type of code; words for what is not there are plain."""
    return text if text in UNSTATED else f"`{text}`"


def settings_part() -> list[str]:
    """The tables of settings."""
    lines = []
    for table in yaml.safe_load((FOLDER / "settings.yaml").read_text(encoding="utf-8")):
        lines += ["", f"## {table['title']}", ""]

        # tables of presets have no recipes
        recipes = table.get("recipes", [])
        if recipes:
            names = ", ".join(f"`recipes/{recipe}.yaml`" for recipe in recipes)
            lines += [f"Recipes: {names}.", ""]
        if "note" in table:
            lines += [table["note"], ""]

        lines += ["| setting | paper | released | ours | source | whose |", "|---|---|---|---|---|---|"]
        lines += [table_row(row, recipes) for row in table["rows"]]
    return lines


def sentences_part() -> list[str]:
    """The places in the code of the methods' sentences, and those that are missing."""
    places = ["", "## Where each sentence is in the code", ""]
    missing = ["", "## Missing", "", "Sentences that cannot be pointed to in the code:", ""]
    for method in yaml.safe_load((FOLDER / "sentences.yaml").read_text(encoding="utf-8")):
        places += [f"### {method['title']}", "", "| sentence | source | code |", "|---|---|---|"]

        for row in method["rows"]:
            if "code" in row:
                places.append(f"| {row['sentence']} | {row['source']} | `{row['code']}` |")
            else:
                missing.append(f"- {method['title']} ({row['source']}): {row['sentence']} *{row['missing']}.*")
        places.append("")

    # the list of what is missing begins with an empty line itself
    return places[:-1] + missing


def draw() -> str:
    """The whole page."""
    return "\n".join([HEAD, *settings_part(), *sentences_part()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(draw(), encoding="utf-8")
    print(f"written to {PAGE}")
