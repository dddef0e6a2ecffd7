"""What requests may say, and how the items in them are read."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import Refusal
from .pictures import PictureReader

_ITEM = 'a text, {"text": ...}, {"image": ...} or both'


class EmbeddingBody(BaseModel):
    """Of `/v1/embeddings`: OpenAI's fields; vLLM's `messages`; and what other servers call `input_type`.

    Unknown fields are refused, since an answer that pays no heed to what was asked is a wrong one.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    input: Any = None  # items are read below, by rules whose errors say what is wrong with which
    messages: list[dict] | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    input_type: Literal["query", "document", "search_query", "search_document"] | None = None
    instruction: str | None = None
    user: str | None = None  # of no use here, but many clients send it

    @property
    def role(self) -> str:
        """As what the items are read."""
        return (self.input_type or "query").removeprefix("search_")

    def items(self) -> list:
        """The items as they were sent, of which there is one at least."""
        if (self.input is None) == (self.messages is None):
            raise Refusal("send either `input` or `messages`.")
        if self.messages is not None:
            return [_of_messages(self.messages)]

        # OpenAI's clients send numbers of tokens, where they know the model
        items = self.input if isinstance(self.input, list) else [self.input]
        if items and isinstance(items[0], (int, list)):
            raise Refusal(
                "`input` holds numbers of tokens; this server tokenises by itself: send texts (LangChain: "
                "check_embedding_ctx_length=False)."
            )
        return items


class RerankBody(BaseModel):
    """Of `/rerank`: the fields that Jina, Cohere and vLLM have in common, and `instruction`."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    query: Any
    documents: list
    top_n: int | None = None
    return_documents: bool | None = None
    instruction: str | None = None
    user: str | None = None


def read_body(kind: type[BaseModel], content: bytes) -> BaseModel:
    """The body of a request.

    Raises:
        Refusal: it is not JSON, or has other fields than `kind`.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"])

        # a mistyped option would otherwise do nothing, silently
        if problem["type"] == "extra_forbidden":
            raise Refusal(f"`{place}` is not known here; known are {', '.join(kind.model_fields)}.") from error
        raise Refusal(f"{f'`{place}`' if place else 'the body'}: {problem['msg']}.") from error


def read_item(value, name: str, pictures: PictureReader):
    """An item as `encode` takes it: a text, or a dict with an opened picture, or both. Nothing in it is a path.

    Args:
        value: a string, `{"text", "image"}` (an address, or a list of them), or `{"content": parts of a message}`.
        name (`str`): how errors call it.
        pictures ([`PictureReader`]): opens what it shows.

    Raises:
        Refusal: it is something else, or a picture cannot be had.
    """
    if isinstance(value, str):
        if not value.strip():
            raise Refusal(f"{name} is empty.")
        return value
    if not isinstance(value, dict):
        raise Refusal(f"{name} is a {type(value).__name__}; an item is {_ITEM}.")

    if "content" in value:
        value = _of_parts(value, name)

    unknown = sorted(value.keys() - {"text", "image"})
    if unknown:
        raise Refusal(f"{name} has unknown keys {unknown}; an item is {_ITEM}.")

    # a text, or images with or without one
    text = value.get("text")
    sources = value.get("image")
    if text is not None and not isinstance(text, str):
        raise Refusal(f"{name}: its text is a {type(text).__name__}.")
    if not sources:
        if not text or not text.strip():
            raise Refusal(f"{name} has neither text nor image.")
        return text

    if not isinstance(sources, list):
        sources = [sources]
    images = [pictures.open(source, name) for source in sources]
    item = {"image": images if len(images) > 1 else images[0]}
    if text:
        item["text"] = text
    return item


def _of_messages(messages: list[dict]) -> dict:
    """The item that a chat of one message is."""
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise Refusal("`messages` must be one message of the role `user`: the model's preset words everything else.")
    return {"content": messages[0].get("content")}


def _of_parts(value: dict, name: str) -> dict:
    """An item from the content of a message: a text, or parts of text and images, as OpenAI has them."""
    content = value["content"]
    if isinstance(content, str):
        return {"text": content}
    if not isinstance(content, list):
        raise Refusal(f"{name}: the content of a message is a text or a list of parts.")

    # the order of texts and images is the preset's
    texts = []
    images = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url" and isinstance(part.get("image_url"), dict):
            images.append(part["image_url"].get("url"))
        else:
            raise Refusal(
                f'{name}: a part must be {{"type": "text", "text": ...}} or '
                '{"type": "image_url", "image_url": {"url": ...}}.'
            )
    return {"text": "\n".join(texts) or None, "image": images or None}
