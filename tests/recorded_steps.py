"""What a step that was recorded on CUDA says, for test_on_cuda.py: prints one JSON object.

    python tests/recorded_steps.py
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny

from minialpaca import recorded
from minialpaca.decode import Stepper
from minialpaca.generate import generate, stream

NEVER = -1


def main() -> None:
    counted, really = [], recorded.record
    recorded.record = lambda work: counted.append(1) or really(work)
    prompts = [tiny.tokens(n, seed=n).tolist() for n in (13, 1, 5)]
    model = tiny.model(max_seq_len=80).cuda()
    stepper = Stepper(tiny.model(max_seq_len=80).cuda(), compiled=True)
    found = {name: all(generate(stepper, some, NEVER, 40) == generate(model, some, NEVER, 40) for _ in range(2))
             for name, some in (("one row", prompts[:1]), ("three rows", prompts))}
    at_once = list(zip(*(stream(stepper, [prompt], NEVER, 30) for prompt in prompts)))  # each with a cache of its own
    found["three at once"] = [[tokens[0] for tokens in text] for text in zip(*at_once)] == [generate(model, [p], NEVER, 30)[0] for p in prompts]
    print(json.dumps(found | {"recorded": len(counted)}))


if __name__ == "__main__":
    main()
