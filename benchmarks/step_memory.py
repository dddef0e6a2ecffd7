"""Peak memory of one contrastive training step by batch size, at one token budget.

    python benchmarks/step_memory.py --batches 64 512
    python benchmarks/step_memory.py --batches 32 128 --lora --resolution 256 --feature-tokens 1000000
    python benchmarks/step_memory.py --batches 32 128 --lora --resolution 256 --feature-tokens 2048

With an adapter the vision tower is frozen, and the features of its images are kept between the two passes of the
gradient cache, up to `--feature-tokens` image tokens.

Every batch size runs in a process of its own; what counts is the peak resident set of the step (CPU) or the peak
allocation (CUDA), collation included. On the CPU the allocator is told to return freed blocks at once, so that the
peak is live memory and not fragmentation.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path


def resident() -> float:
    """Most MiB this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_step(batch_size: int, options: argparse.Namespace) -> dict:
    """Trains a step in this process, and returns the MiB held before it and at its peak."""
    import torch
    from peft import LoraConfig

    from unime import UniMEConfig, UniMEModel
    from unime.data.readers import read_mmeb_train
    from unime.miniature.backbone import build_config, build_processor, build_tokenizer, world_texts
    from unime.miniature.world import build
    from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer

    with tempfile.TemporaryDirectory() as folder:
        world = build(Path(folder) / "world", train_rows=520, test_rows=2, pretrain_rows=2, show_progress=False)
        rows = read_mmeb_train(world / "train", ["Shapes_t2i"], image_root=world)

        tokenizer = build_tokenizer(world_texts(world))
        config = build_config(tokenizer, hidden_size=384, layers=8, vision_size=192, vision_layers=6)
        model = UniMEModel(UniMEConfig(vlm_config=config))
        model.processor = build_processor(tokenizer)

        args = ContrastiveConfig(
            output_dir=folder,
            max_steps=1,
            per_device_train_batch_size=batch_size,
            batch_tokens=options.batch_tokens,
            feature_tokens=options.feature_tokens,
            resolution=options.resolution,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
        )

        # the world and the model are not what is measured
        adapter = None
        if options.lora:
            adapter = LoraConfig(r=16, target_modules=r".*language_model.*\.(q_proj|v_proj)")
        trainer = ContrastiveTrainer(model, args, train_dataset=rows, peft_config=adapter)
        before = resident()
        trainer.train()
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else resident()
    return {"batch": batch_size, "before_mib": round(before), "peak_mib": round(peak)}


def run_apart(batch_size: int) -> dict:
    """The same in a process of its own, which gives freed memory back at once."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", str(batch_size)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(output.strip().splitlines()[-1])  # the trainer prints lines before it


def main():
    """Prints a line for each batch size, and the growth from the first to the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--lora", action="store_true", help="train an adapter of the language model")
    parser.add_argument("--resolution", help="policy of the images; native by default")
    parser.add_argument("--feature-tokens", type=int, default=65_536)
    parser.add_argument("--one", type=int, help="run this batch size here and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_step(options.one, options)))
        return

    results = []
    for batch_size in options.batches:
        results.append(run_apart(batch_size))
        print(results[-1], flush=True)

    first = results[0]
    last = results[-1]
    growth = last["peak_mib"] / first["peak_mib"] - 1
    print(f"peak from batch {first['batch']} to {last['batch']} at {options.batch_tokens} tokens: {growth:+.1%}")


if __name__ == "__main__":
    main()
