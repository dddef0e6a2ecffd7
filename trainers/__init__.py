"""One file a stage: its config, its trainer, its `main()`. Run as `accelerate launch -m unime.trainers.<stage>`."""
