"""A training step with LoRA beside one of full tuning: time and memory, side by side.

    python -m benchmarks.lora_step --rounds 5
    python -m benchmarks.lora_step --rounds 5 --untied

Width 384, 6 layers, 6 heads, d_ff 1024, vocabulary 8,192 tied (or with a head of its own), context 256, batch 8; LoRA r = 8 on q, k, v, o; AdamW, fp32.
Each round runs both, each in a process of its own, in turn; a process times the steps after warm-up. Peak memory is what the
process holds above what importing took. Medians of the rounds, with the lowest and the highest ratio.
"""

import argparse
import json
import statistics
import time

from benchmarks.runs import alone, between, peak_bytes

LORA = ("q_proj", "k_proj", "v_proj", "o_proj")


def worker(method: str, steps: int, warmup: int, tied: bool) -> dict[str, float]:
    import torch

    from minialpaca.config import AdapterConfig, ModelConfig, OptimConfig
    from minialpaca.data.batch import collate
    from minialpaca.model import Transformer
    from minialpaca.optim import build_adamw, clip_by_global_norm
    from minialpaca.peft import apply
    from minialpaca.tasks import next_token_loss

    imported = peak_bytes()
    model = Transformer(ModelConfig(vocab_size=8192, d_model=384, n_layers=6, n_heads=6, d_ff=1024, max_seq_len=256, tie_embeddings=tied)).train()
    if method == "lora":
        apply(model, AdapterConfig(method, targets=LORA, rank=8))
    optimizer = build_adamw(model, OptimConfig())
    generator, seconds = torch.Generator().manual_seed(0), []
    for _ in range(warmup + steps):
        rows = torch.randint(8192, (8, 257), generator=generator).tolist()
        batch = collate([(ids, ids) for ids in rows], pad=3)
        started = time.perf_counter()
        (next_token_loss(model, batch) / batch.n_supervised).backward()
        clip_by_global_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds[warmup:]), "mib": (peak_bytes() - imported) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--worker", choices=("none", "lora"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args.worker, args.steps, warmup=2, tied=not args.untied)))
        return
    rows = {"none": [], "lora": []}
    for _ in range(args.rounds):
        for method, found in rows.items():
            found.append(alone("lora_step", "--worker", method, "--steps", str(args.steps), *(["--untied"] if args.untied else [])))
            print(method, found[-1], flush=True)
    faster = [f["seconds"] / lora["seconds"] for f, lora in zip(rows["none"], rows["lora"])]
    smaller = [lora["mib"] / f["mib"] for f, lora in zip(rows["none"], rows["lora"])]
    print("| | full | LoRA | ratio, median (lowest to highest) |\n|---|---|---|---|")
    for name, key, ratios in (("seconds a step", "seconds", faster), ("peak MiB above imports", "mib", smaller)):
        full, lora = (statistics.median(r[key] for r in rows[method]) for method in rows)
        print(f"| {name} | {full:.3g} | {lora:.3g} | {between(ratios)} |")


if __name__ == "__main__":
    main()
