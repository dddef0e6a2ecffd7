"""The miniature backbone: a real Qwen2-VL of a few million parameters, pre-trained on the miniature world.

    python -m unime.miniature.backbone --world outputs/world --out outputs/backbone

The result is a stock `Qwen2VLForConditionalGeneration` checkpoint: a small MLLM that describes, answers,
sums up in one word, judges with Yes or No and picks by number. `UniMEModel.from_backbone` turns it into an embedder.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Sampler
from transformers import HfArgumentParser, PreTrainedTokenizerFast, Qwen2VLConfig, Trainer, TrainingArguments, set_seed
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..configuration_unime import UniMERerankerConfig
from ..data.samplers import HomogeneousSampler
from ..modeling_unime import UniMERerankerForCausalLM
from ..processing_unime import UniMEProcessor
from ..prompts_unime import LISTWISE_INSTRUCTION, POINTWISE_INSTRUCTION
from ..trainers.embedding_trainer import fast_bf16
from ..trainers.metered_trainer import resolve_decay

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def world_texts(world: Path) -> list[str]:
    """Every training text of a world, the prompts included."""
    texts = ["user", "assistant", "system", "Query:", "Candidate:", "Candidates:", "Ans: (", "Yes No"]
    texts += [POINTWISE_INSTRUCTION, LISTWISE_INSTRUCTION, "Summary above image and sentence in one word:"]
    for path in sorted((world / "train").glob("*/original-*.parquet")):
        table = pq.read_table(path, columns=["qry", "pos_text"])
        texts += table["qry"].to_pylist() + table["pos_text"].to_pylist()
    for row in pq.read_table(world / "pretrain" / "generative.parquet").to_pylist():
        texts += [row["query"]["text"], row["answer"], *(candidate["text"] for candidate in row["candidates"])]
    return [text.replace("<|image_1|>", "") for text in texts]


def build_tokenizer(texts: list[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen2-VL's special tokens; any string can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=SPECIAL[1:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
    )


def build_config(
    tokenizer,
    hidden_size: int = 192,
    layers: int = 2,
    vision_size: int = 192,
    vision_layers: int = 3,
    patch_size: int = 8,
):
    """A Qwen2-VL configuration of miniature size with the tokenizer's special ids."""
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    ids |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    heads = hidden_size // 48
    spread = 0.08  # about 1 / sqrt(width): at this size the usual 0.02 costs hundreds of steps before anything is seen
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 8, 8]},
        "initializer_range": spread,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": vision_layers,
        "embed_dim": vision_size,
        "hidden_size": hidden_size,
        "num_heads": vision_size // 48,
        "mlp_ratio": 3,
        "patch_size": patch_size,
        "temporal_patch_size": 1,
        "initializer_range": spread,
    }
    return Qwen2VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, initializer_range=spread, **ids
    )


def build_processor(tokenizer, patch_size: int = 8, max_side: int = 128) -> UniMEProcessor:
    pixels = {"shortest_edge": (2 * patch_size) ** 2, "longest_edge": max_side**2}
    image_processor = Qwen2VLImageProcessorPil(patch_size=patch_size, temporal_patch_size=1, merge_size=2, size=pixels)
    return UniMEProcessor(image_processor, tokenizer, max_length=1024)


class GenerativeCollator:
    """Rows of `pretrain/generative.parquet` -> prompt and answer, with only the answer's tokens as labels."""

    def __init__(self, processor: UniMEProcessor, root: Path):
        self.processor, self.root = processor, root

    def __call__(self, rows) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        prepared = self.processor.prepare([self.messages(row) for row in rows])
        answers = tokenizer([row["answer"] + tokenizer.eos_token for row in rows])["input_ids"]
        batch = self.processor.collate([replace(p, input_ids=p.input_ids + a) for p, a in zip(prepared, answers)])
        labels = torch.full_like(batch["input_ids"], -100)
        for row, answer in enumerate(answers):
            labels[row, -len(answer) :] = torch.tensor(answer)  # left padding: answers end at the right edge
        return {**batch, "labels": labels}

    def messages(self, row) -> list[dict]:
        def item(part):
            return {"text": part["text"], "image": str(self.root / part["image"]) if part["image"] else None}

        if row["candidates"]:
            strategy = "pointwise" if row["task"] == "match" else "listwise"
            return self.processor.rerank_messages(item(row["query"]), [item(c) for c in row["candidates"]], strategy)
        query = item(row["query"])
        content = [{"type": "image", "image": query["image"]}] * bool(query["image"])
        return [{"role": "user", "content": [*content, {"type": "text", "text": query["text"]}]}]


SHORT = ("caption", "question", "summary")  # prompts of about one length: they share batches


class CurriculumSampler(Sampler[int]):
    """One stage after the other, each in blocks of rows of about one length."""

    def __init__(self, stages: list[int], tasks: list[str], block_size: int, seed: int):
        self.stages = []
        for stage in sorted(set(stages)):
            rows = [row for row, own in enumerate(stages) if own == stage]
            self.stages.append(
                (
                    rows,
                    HomogeneousSampler(
                        ["short" if tasks[row] in SHORT else tasks[row] for row in rows], block_size, seed
                    ),
                )
            )

    def set_epoch(self, epoch: int):
        for _, sampler in self.stages:
            sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self.stages)

    def __iter__(self):
        for rows, sampler in self.stages:
            yield from (rows[index] for index in sampler)


class GenerativeTrainer(Trainer):
    """The ordinary Trainer with the curriculum's order and a decay given as a share of all steps."""

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        resolve_decay(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_train_sampler(self, train_dataset=None):
        rows = self.train_dataset
        return CurriculumSampler(
            rows["stage"], rows["task"], self._train_batch_size * self.args.world_size, self.args.seed
        )


@dataclass
class BackboneArguments:
    world: str = field(metadata={"help": "Folder written by unime.miniature.world."})


@dataclass
class BackboneConfig(TrainingArguments):
    """`TrainingArguments` with the defaults of the miniature backbone."""

    output_dir: str | None = field(default="outputs/backbone", metadata={"help": "Where the checkpoint goes."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta."})
    per_device_train_batch_size: int = field(default=48, metadata={"help": "Rows a step."})
    layers: int = field(default=2, metadata={"help": "Layers of the language model."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the generative rows."})
    warmup_steps: float = field(default=30, metadata={"help": "Warm-up steps."})
    lr_scheduler_type: str = field(default="warmup_stable_decay", metadata={"help": "Shape of the learning rate."})
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"num_decay_steps": 0.4, "min_lr_ratio": 0.1}, metadata={"help": "Its settings."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
    save_steps: float = field(default=150, metadata={"help": "Checkpoint every so many steps."})
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available, metadata={"help": "Pin host memory."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept."})
    use_cpu: bool = field(
        default_factory=lambda: not torch.accelerator.is_available(), metadata={"help": "Train on the CPU."}
    )
    bf16: bool = field(default_factory=fast_bf16, metadata={"help": "Mixed precision; by default where it is faster."})

    def __post_init__(self):
        self.remove_unused_columns = False
        super().__post_init__()


def last_checkpoint(folder) -> str | None:
    """The newest checkpoint that was written to the end; the state is its last file."""
    whole = [path.parent for path in Path(folder).glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def pretrain(world, args: BackboneConfig) -> Path:
    """Builds tokenizer and model and trains on the world's generative rows, going on where it was interrupted."""
    world, out = Path(world), Path(args.output_dir)
    set_seed(args.seed)
    tokenizer = build_tokenizer(world_texts(world))
    processor = build_processor(tokenizer)
    model = UniMERerankerForCausalLM(UniMERerankerConfig(vlm_config=build_config(tokenizer, layers=args.layers)))
    model.vlm.set_attn_implementation({"text_config": "eager", "vision_config": model.vision_attention})
    rows = Dataset(pq.read_table(world / "pretrain" / "generative.parquet"))
    trainer = GenerativeTrainer(
        model=model, args=args, train_dataset=rows, data_collator=GenerativeCollator(processor, world)
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    processor.image_processor.save_pretrained(out)
    tokenizer.save_pretrained(out)
    model.vlm.save_pretrained(out)
    return out


def main(arguments=None):
    options, args = HfArgumentParser((BackboneArguments, BackboneConfig)).parse_args_into_dataclasses(arguments)
    print(pretrain(options.world, args))


if __name__ == "__main__":
    main()
