"""One file a stage: its config, its trainer, its `main()`. Run as `accelerate launch -m unime.trainers.<stage>`."""

import os

import torch

if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it has looked for one
