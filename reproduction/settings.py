"""How large a reproduction is: the full one, and a smoke run that only shows that everything runs."""

FULL = {
    "world": {"test_rows": 400},  # with 150, a difference of a point cannot be told
    "backbone": {"layers": 4, "max_steps": 2000},  # after 550 it does not tell shapes apart
    "instructed": {"max_steps": 800},
    "teacher": {"epochs": 8},
    "judge": {"max_steps": 3000},
    # in rising quality
    "judges": {"early": {"max_steps": 200}, "middle": {"max_steps": 1000}, "best": {}},
    "mining": {"margin": "0.01"},  # the paper's; the recipe's is for a judge of a few hundred steps
    # changes of the recipes in recipes/shapes, by their names: each is trained three times and more
    "stages": {
        "distillation": {"max_steps": 150},
        "contrastive": {"max_steps": 200},
        "contrastive-mined": {"max_steps": 200},
        "alignment": {"max_steps": 200},
        "reranker": {"max_steps": 60},
    },
    "curves": {"max_steps": 60},
    "judge_lessons": 200,
    "rerank_queries": 60,
    "rerank_tops": (5, 10),
    "two_towers": {"steps": 300, "batch": 64},
    "memory_batches": (32, 64, 128, 256),
}

QUICK = {
    "world": {"train_rows": 16, "test_rows": 12, "pretrain_rows": 64},
    "backbone": {"layers": 2, "max_steps": 2, "warmup_steps": 0, "save_steps": 2, "disable_tqdm": True},
    "instructed": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4, "disable_tqdm": True},
    "teacher": {"epochs": 0.5},
    "judge": {"warmup_steps": 0, "save_steps": 2, "per_device_train_batch_size": 3, "disable_tqdm": True},
    "judges": {"early": {"max_steps": 1}, "middle": {"max_steps": 2}, "best": {"max_steps": 2}},
    "mining": {"mined_per_subset": 3, "top_k": 4, "delta": "none", "fallback": "judge_lowest"},
    "stages": {
        "distillation": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 8, "save_steps": 2},
        "contrastive": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 8, "save_steps": 2},
        "contrastive-mined": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4, "save_steps": 2},
        "alignment": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 4, "save_steps": 2},
        "reranker": {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 2, "save_steps": 2},
    },
    "curves": {"max_steps": 4, "per_device_train_batch_size": 16},
    "judge_lessons": 4,
    "rerank_queries": 2,
    "rerank_tops": (3,),
    "two_towers": {"steps": 2, "batch": 8},
    "memory_batches": (2, 4),
}
