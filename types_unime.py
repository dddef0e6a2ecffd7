"""Values of another type than a configuration or a tokenizer has by default, found before anything is built from them.

transformers checks the settings that a model's own class declares. It takes anything for those that all classes share,
and a tokenizer takes anything: such a value would fail in another place, and another file would be blamed.
"""

from dataclasses import fields

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def check_types(file: str, values: dict, defaults: dict, section: str = ""):
    """Compares values with defaults of the same names; a name without a default, or with `None`, may be anything.

    Args:
        file (`str`): where the values stand, for the message.
        values (`dict`): as JSON has them.
        defaults (`dict`): by name.
        section (`str`): what their names begin with in the message.

    Raises:
        ValueError: a value is of another type than its default; the message names file and key.
    """
    for key, value in values.items():
        default = defaults.get(key)
        if value is None or default is None:
            continue

        expected = list if isinstance(default, tuple) else type(default)
        if expected in _WORDS and not _fits(value, expected):
            raise ValueError(f'{file} is damaged: "{section}{key}" is {value!r}, and must be {_WORDS[expected]}.')


def _fits(value, expected: type) -> bool:
    """Whether a value of JSON is of a type; 2.0 is a whole number, and true is none."""
    if expected in (int, float):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (expected is float or value % 1 == 0)
    return isinstance(value, expected)


def check_configuration_types(file: str, config: dict, config_class: type[PreTrainedConfig]):
    """Checks a configuration's own settings, and in every section those that configurations of all models share.

    Args:
        file (`str`): of the configuration, for the message.
        config (`dict`): its content.
        config_class: that reads it.

    Raises:
        ValueError: a value is of another type; the message names file and key.
    """
    check_types(file, config, {field.name: field.default for field in fields(config_class)})

    defaults = {field.name: field.default for field in fields(PreTrainedConfig)}
    defaults["output_attentions"] = False  # a property, and so not among them
    waiting = [("", config)]
    while waiting:
        section, values = waiting.pop()
        check_types(file, values, defaults, section)
        for key, value in values.items():
            if key.endswith("_config") and isinstance(value, dict):
                waiting.append((f"{section}{key}.", value))


def check_tokenizer_types(file: str, config: dict):
    """Checks the settings that all tokenizers share.

    Args:
        file (`str`): of the settings, for the message.
        config (`dict`): its content.

    Raises:
        ValueError: a value is of another type, or there is room for no token; the message names file and key.
    """
    check_types(file, config, vars(PreTrainedTokenizerBase()))
    if config.get("model_max_length") is not None and config["model_max_length"] < 1:
        raise ValueError(
            f'{file} is damaged: "model_max_length" is {config["model_max_length"]}, and must be at least 1.'
        )


def check_named_tokens(file: str, config: dict, tokenizer: dict):
    """Refuses special tokens that a tokenizer would get from its settings alone, for which no model has an embedding.

    Args:
        file (`str`): of the settings, `tokenizer_config.json`, for the message.
        config (`dict`): its content.
        tokenizer (`dict`): content of a sound `tokenizer.json`.

    Raises:
        ValueError: a token is new; the message names file and key.
    """
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # of pieces with their scores
        vocabulary = {piece for piece, _ in vocabulary}
    tokens = {entry["content"] for entry in tokenizer["added_tokens"]}

    for key, token in _named_tokens(config):
        if token not in tokens and token not in vocabulary:
            raise ValueError(f'{file} is damaged: "{key}" is {token!r}, a token that tokenizer.json does not have.')


def _named_tokens(config: dict) -> list[tuple[str, str]]:
    """The special tokens that the settings of a tokenizer name, with their keys."""
    named = {key: config.get(key) for key in PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES}

    # a list, or an object with a name for each
    extra_tokens = config.get("extra_special_tokens") or {}
    if isinstance(extra_tokens, list):
        extra_tokens = dict(enumerate(extra_tokens))
    for name, token in extra_tokens.items():
        named[f"extra_special_tokens[{name}]"] = token

    tokens = []
    for key, token in named.items():
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            tokens.append((key, token))
    return tokens


__all__ = ["check_configuration_types", "check_named_tokens", "check_tokenizer_types", "check_types"]
