"""The miniature backbone: a real Qwen2-VL of a few million parameters, pre-trained on the miniature world.

    python -m unime.miniature.backbone --world outputs/world --out outputs/backbone

The result is a stock `Qwen2VLForConditionalGeneration` checkpoint: a small MLLM that describes, answers,
sums up in one word, judges with Yes or No and picks by number. `UniMEModel.from_backbone` turns it into an embedder.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import HfArgumentParser, PreTrainedTokenizerFast, Qwen2VLConfig, Trainer, TrainingArguments, set_seed
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..configuration_unime import UniMERerankerConfig
from ..data.samplers import HomogeneousSampler
from ..data.schema import PLACEHOLDER
from ..jobs.notices import silence_alarms
from ..modeling_unime import UniMERerankerForCausalLM
from ..processing_unime import UniMEProcessor
from ..prompts_unime import LISTWISE_INSTRUCTION, POINTWISE_INSTRUCTION
from ..trainers.metered_trainer import resolve_decay
from ..trainers.muon import MuonWithAdamW
from ..trainers.progress import TrainingBar
from ..trainers.resuming import last_checkpoint
from ..trainers.stage_config import fast_bf16
from ..trainers.starting import plain_attention

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
IGNORED = -100  # the label of a token that is not learnt
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def world_texts(world: Path) -> list[str]:
    """Every training text of a world, the prompts included: what the tokenizer learns its words from.

    Args:
        world (`Path`): written by [`~unime.miniature.world.build`].
    """
    # the frames of chats and judgements
    texts = ["user", "assistant", "system", "Query:", "Candidate:", "Candidates:", "Ans: (", "Yes No"]
    texts += [POINTWISE_INSTRUCTION, LISTWISE_INSTRUCTION, "Summary above image and sentence in one word:"]

    for path in sorted((world / "train").glob("*/original-*.parquet")):
        table = pq.read_table(path, columns=["qry", "pos_text"])
        texts += table["qry"].to_pylist() + table["pos_text"].to_pylist()

    for row in pq.read_table(world / "pretrain" / "generative.parquet").to_pylist():
        texts += [row["query"]["text"], row["answer"]]
        for candidate in row["candidates"]:
            texts.append(candidate["text"])
    return [text.replace(PLACEHOLDER, "") for text in texts]


def build_tokenizer(texts: list[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen2-VL's special tokens; any string can be encoded.

    Args:
        texts (`list[str]`): it is trained on these.
        vocab_size (`int`, defaults to 1024): tokens at most, the special ones and the 256 bytes included.
    """
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

    # padding is on the left, so that the last position of every row is its last token
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
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int = 192,
    layers: int = 2,
    vision_size: int = 192,
    vision_layers: int = 3,
    patch_size: int = 8,
) -> Qwen2VLConfig:
    """A Qwen2-VL configuration of miniature size with the tokenizer's special ids.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): made by [`build_tokenizer`].
        hidden_size (`int`, defaults to 192): width of the language model, a multiple of 96: heads have 48 dimensions,
            and every two share their keys and values.
        layers (`int`, defaults to 2): of the language model.
        vision_size (`int`, defaults to 192): width of the vision tower, a multiple of 48.
        vision_layers (`int`, defaults to 3): of the vision tower.
        patch_size (`int`, defaults to 8): pixels of a patch's side; four patches make a token.
    """
    # about 1 / sqrt(width): at this size the usual 0.02 costs hundreds of steps before anything is seen
    initializer_range = 0.08

    # Qwen2-VL's own turn by thousandths of a radian from one column of a picture to the next, where there are three
    # columns: left and right could not be told apart. These turn by up to 0.2 for columns and 0.7 for rows.
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 6, 16]}
    heads = hidden_size // 48
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "rope_parameters": rope,
        "initializer_range": initializer_range,
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
        "hidden_act": "silu",  # in one kernel, other than Qwen2-VL's quick_gelu: a twentieth of a training step
        "patch_size": patch_size,
        "temporal_patch_size": 1,
        "initializer_range": initializer_range,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, patch_size: int = 8, max_side: int = 128) -> UniMEProcessor:
    """A processor for [`build_config`]'s model.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): made by [`build_tokenizer`].
        patch_size (`int`, defaults to 8): as the configuration has it.
        max_side (`int`, defaults to 128): images of more than `max_side ** 2` pixels are made smaller.
    """
    pixels = {"shortest_edge": (2 * patch_size) ** 2, "longest_edge": max_side**2}
    image_processor = Qwen2VLImageProcessorPil(patch_size=patch_size, temporal_patch_size=1, merge_size=2, size=pixels)
    return UniMEProcessor(image_processor, tokenizer, max_length=1024)


class GenerativeCollator:
    """Rows of `pretrain/generative.parquet` -> prompt and answer, with only the answer's tokens as labels.

    Args:
        processor ([`~unime.processing_unime.UniMEProcessor`]): tokenises prompts and reads images.
        root (`Path`): the folder that image paths start from.
    """

    def __init__(self, processor: UniMEProcessor, root: Path):
        self.processor = processor
        self.root = root

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """A batch as the model takes it; `labels` `[B, L]` are -100 but for the answers."""
        tokenizer = self.processor.tokenizer
        prompts = self.processor.prepare([self.messages(row) for row in rows])
        answers = tokenizer([row["answer"] + tokenizer.eos_token for row in rows])["input_ids"]

        sequences = []
        for prompt, answer in zip(prompts, answers):
            sequences.append(replace(prompt, input_ids=prompt.input_ids + answer))
        batch = self.processor.collate(sequences)

        # padding is on the left, so answers end at the right edge
        labels = torch.full_like(batch["input_ids"], IGNORED)  # [B, L]
        for row, answer in enumerate(answers):
            labels[row, -len(answer) :] = torch.tensor(answer)
        return {**batch, "labels": labels}

    def messages(self, row: dict) -> list[dict]:
        """The chat that a row asks its question in: that of a judge where it has candidates, `system` before it."""
        query = self._item(row["query"])
        if row["candidates"]:
            candidates = [self._item(candidate) for candidate in row["candidates"]]
            strategy = "pointwise" if row["task"] == "match" else "listwise"
            return self.processor.rerank_messages(query, candidates, strategy)

        content = [{"type": "text", "text": query["text"]}]
        if query["image"]:
            content.insert(0, {"type": "image", "image": query["image"]})
        chat = [{"role": "user", "content": content}]
        if row.get("system"):
            chat.insert(0, {"role": "system", "content": row["system"]})
        return chat

    def _item(self, cell: dict) -> dict:
        """A cell of the table, with a path that can be opened; no image is an empty string there."""
        if not cell["image"]:
            return {"text": cell["text"], "image": None}
        return {"text": cell["text"], "image": str(self.root / cell["image"])}


class GenerativeTrainer(Trainer):
    """The ordinary Trainer with a decay given as a share of all steps."""

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        resolve_decay(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)


class BackboneTrainer(GenerativeTrainer):
    """Trains on generative rows: with Muon, and in batches of prompts of about one length."""

    SHORT = ("caption", "question", "summary")  # they share batches; the other tasks have batches of their own

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = MuonWithAdamW.of(self.model, self.args)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]  # [B, L]
        tensors = {name: values for name, values in inputs.items() if name != "labels"}

        # answers end at the right edge, and all columns before the longest of them have no label
        length = int((labels != IGNORED).any(dim=0).sum())  # A
        output = model(**tensors, use_cache=False, logits_to_keep=length + 1)
        logits = output.logits[:, :-1].float()  # [B, A, V]
        loss = F.cross_entropy(logits.transpose(1, 2), labels[:, -length:], ignore_index=IGNORED)
        return (loss, output) if return_outputs else loss

    def _get_train_sampler(self, train_dataset=None):
        groups = []
        for task in self.train_dataset["task"]:
            groups.append("short" if task in self.SHORT else task)
        block_size = self._train_batch_size * self.args.world_size
        return HomogeneousSampler(groups, block_size, self.args.seed)


@dataclass
class BackboneArguments:
    """What the command needs beside [`BackboneConfig`]."""

    world: str = field(metadata={"help": "Folder written by unime.miniature.world."})


@dataclass
class BackboneConfig(TrainingArguments):
    """`TrainingArguments` with the defaults of the miniature backbone."""

    output_dir: str | None = field(default="outputs/backbone", metadata={"help": "Where the checkpoint goes."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
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


def pretrain(world, args: BackboneConfig, bar: TrainingBar | None = None) -> Path:
    """Builds tokenizer and model and trains on the world's generative rows, going on where it was interrupted.

    Args:
        world (`str` or `Path`): written by [`~unime.miniature.world.build`].
        args ([`BackboneConfig`]): settings of the training; the checkpoint goes to its `output_dir`.
        bar ([`~unime.trainers.progress.TrainingBar`], *optional*): shows the progress.

    Returns:
        `Path`: the folder with a stock `Qwen2VLForConditionalGeneration`; `model.safetensors` is written last.

    Example:

    ```python
    pretrain("outputs/world", BackboneConfig(output_dir="outputs/backbone", max_steps=100, warmup_steps=10))
    ```
    """
    world = Path(world)
    out = Path(args.output_dir)
    set_seed(args.seed)

    tokenizer = build_tokenizer(world_texts(world))
    processor = build_processor(tokenizer)
    model = UniMERerankerForCausalLM(UniMERerankerConfig(vlm_config=build_config(tokenizer, layers=args.layers)))

    rows = Dataset(pq.read_table(world / "pretrain" / "generative.parquet"))
    collator = GenerativeCollator(processor, world)
    trainer = BackboneTrainer(model=model, args=args, train_dataset=rows, data_collator=collator)
    if bar is not None:
        bar.attach(trainer)
    train_and_save(trainer, processor)
    return out


def train_and_save(trainer: GenerativeTrainer, processor: UniMEProcessor):
    """Trains, going on from the last checkpoint, and saves a stock checkpoint to the trainer's `output_dir`.

    Args:
        trainer ([`GenerativeTrainer`]): of a [`~unime.modeling_unime.UniMERerankerForCausalLM`].
        processor ([`~unime.processing_unime.UniMEProcessor`]): its image processor and tokenizer are saved too.
    """
    model = trainer.model
    plain_attention(model)

    out = trainer.args.output_dir
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    processor.image_processor.save_pretrained(out)
    processor.tokenizer.save_pretrained(out)
    model.vlm.save_pretrained(out)


def main(arguments=None):
    """The command `python -m unime.miniature.backbone`."""
    silence_alarms()
    options, args = HfArgumentParser((BackboneArguments, BackboneConfig)).parse_args_into_dataclasses(arguments)
    print(pretrain(options.world, args))


if __name__ == "__main__":
    main()
