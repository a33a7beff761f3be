"""Write the built-in world as files, to look at it or to use it as one would use one's own.

    python -m minialpaca.data.world OUT_DIR --seed 0
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from minialpaca.data import world
from minialpaca.errors import UserError, command, reason


SPLITS = ("train", "validation", "test")
USE = ("corpus.txt has a document on each line: give it to train.py with data.documents=line. The three .json files are "
       "for finetune.py: data.source, data.val_source and data.test_source.")


def write_world(seed: int, folder: Path) -> str:
    """Write corpus.txt and the three Alpaca files; hand back the counts as text."""
    refuse_existing(folder)
    built = world.World.build(seed)
    documents = list(world.corpus(built))
    tokens = re.findall(r"\w+", " ".join(documents))
    lines = [
        f"entities {len(built.entities)}, facts {sum(len(entity.facts) for entity in built.entities)}",
        f"documents {len(documents)}, words {len(tokens)}, distinct words {len({t.lower() for t in tokens})}",
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "corpus.txt").write_text("\n".join(documents) + "\n", encoding="utf-8")
        for name, split in zip(SPLITS, world.instructions(built)):
            array = json.dumps([row.record() for row in split], ensure_ascii=False, indent=1)
            (folder / f"{name}.json").write_text(array + "\n", encoding="utf-8")
            kinds = Counter(row.kind for row in split)
            lines.append(f"{name} {len(split)}: " + ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items())))
    except OSError as error:
        raise UserError(f"{folder}: the world cannot be written: {reason(error)}; name another folder") from None
    return "\n".join(lines)


def refuse_existing(folder: Path) -> None:
    """A train.json that is there may be somebody's own."""
    there = [path.name for path in (folder / "corpus.txt", *(folder / f"{name}.json" for name in SPLITS)) if path.exists()]
    if there:
        raise UserError(f"{folder}: holds {', '.join(there)} already; name another folder, or move what is there")


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m minialpaca.data.world", description=__doc__.splitlines()[0],
                                     epilog=USE)
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="a folder; files of ours that are there are not overwritten")
    parser.add_argument("--seed", type=int, default=0, help="which world; world:SEED in a config is the same one (default 0)")
    arguments = parser.parse_args(argv)
    print(write_world(arguments.seed, arguments.out_dir))


if __name__ == "__main__":
    main()
