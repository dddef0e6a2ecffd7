"""What PEFT's own tests expect of a base model: every kind of adapter trains, is saved, loaded and taken out again."""

import pytest
import torch
from conftest import picture
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)

from unime import UniMEModel, UniMERerankerForCausalLM

TARGETS = ["q_proj", "v_proj"]
ADAPTERS = {
    "lora": LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False),
    "dora": LoraConfig(r=4, target_modules=TARGETS, use_dora=True, init_lora_weights=False),
    "loha": LoHaConfig(r=4, target_modules=TARGETS, init_weights=False),
    "ia3": IA3Config(
        target_modules=[*TARGETS, "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
    "vera": VeraConfig(r=4, target_modules=["q_proj"], init_weights=False),
}
PROMPTS = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig, "p-tuning": PromptEncoderConfig}


def inputs_of(model) -> dict:
    items = ["a red circle left of a blue star", {"image": picture(1), "text": "a star"}]
    return dict(model.processor.collate(model.processor.prepare(items)))


def numbers(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        output = model(**inputs)
    return output.embeddings if "embeddings" in output else output.logits


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("model_class", [UniMEModel, UniMERerankerForCausalLM])
def test_adapters_train_merge_and_come_back(backbone, tmp_path, model_class, kind):
    model = model_class.from_backbone(backbone)
    inputs = inputs_of(model)
    before = numbers(model, inputs)

    torch.manual_seed(0)
    adapted = get_peft_model(model, ADAPTERS[kind]).eval()
    after = numbers(adapted, inputs)
    assert not torch.allclose(after, before, atol=1e-4)
    with adapted.disable_adapter():
        torch.testing.assert_close(numbers(adapted, inputs), before)

    # the adapter alone has gradients
    adapted(**inputs)[0].pow(3).sum().backward()
    trained = [name for name, weight in adapted.named_parameters() if weight.grad is not None]
    assert trained and all(adapted.base_model.prefix in name for name in trained)

    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model_class.from_backbone(backbone), tmp_path)
    torch.testing.assert_close(numbers(loaded, inputs), after)
    torch.testing.assert_close(numbers(loaded.merge_and_unload(), inputs), after, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(numbers(adapted.unload(), inputs), before)


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("task", ["FEATURE_EXTRACTION", "CAUSAL_LM"])
def test_prompt_methods_find_their_dimensions(backbone, tmp_path, task, kind):
    model_class = UniMEModel if task == "FEATURE_EXTRACTION" else UniMERerankerForCausalLM
    model = model_class.from_backbone(backbone)
    inputs = inputs_of(model)
    text = {"input_ids": inputs["input_ids"][:1, -20:], "attention_mask": torch.ones(1, 20, dtype=torch.long)}

    torch.manual_seed(0)
    adapted = get_peft_model(model, PROMPTS[kind](num_virtual_tokens=4, task_type=task)).eval()
    config = adapted.active_peft_config
    text_config = model.config.get_text_config()
    width = text_config.hidden_size
    if kind == "prefix":  # of keys and values, which are narrower
        width = width // text_config.num_attention_heads * text_config.num_key_value_heads
    assert (config.num_layers, config.token_dim) == (text_config.num_hidden_layers, width)

    # the learnt tokens change what is read, and alone have gradients
    output = numbers(adapted, text)
    expected_shape = (1, 96) if task == "FEATURE_EXTRACTION" else (1, 20 + 4 * (kind != "prefix"), 400)
    assert output.shape == expected_shape and torch.isfinite(output).all()
    assert not torch.allclose(output[:, -1], numbers(model, text)[:, -1], atol=1e-5)
    adapted(**text)[0].pow(3).sum().backward()
    trained = [name for name, weight in adapted.named_parameters() if weight.grad is not None]
    assert trained and all("prompt_encoder" in name for name in trained)

    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model_class.from_backbone(backbone), tmp_path).eval()
    torch.testing.assert_close(numbers(loaded, text), output)
    if task == "CAUSAL_LM":
        written = adapted.generate(**text, max_new_tokens=3, do_sample=False)
        assert written.shape[1] == 20 + 3
