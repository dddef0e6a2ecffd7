"""What the texts of the miniature world say: MMEB's own instructions for the tasks that it stands for."""

from ..data.schema import PLACEHOLDER
from ..eval.suites import MMEB

IMAGE = f"{PLACEHOLDER}\n"  # the beginning of every text that stands beside an image

# of queries
CLASSIFY = MMEB["ImageNet-1K"].instruction
NAME_OBJECT = MMEB["VOC2007"].instruction
ANSWER = MMEB["GQA"].instruction
FIND_IMAGE = MMEB["MSCOCO_t2i"].instruction
FIND_CAPTION = MMEB["MSCOCO_i2t"].instruction
FIND_SIMILAR = MMEB["NIGHTS"].instruction
FIND_CHANGED = MMEB["CIRR"].instruction
SELECT_CROP = "Select the portion of the image that isolates the object labeled as"  # MSCOCO

# of targets
REPRESENT_IMAGE = "Represent the given image."
REPRESENT_CROP = "Represent the given cropped image of the object."


def prompt(instruction: str, words: str = "") -> str:
    """An instruction on a line of its own, with the words that it is about behind it.

    Args:
        instruction (`str`): one of this module.
        words (`str`, *optional*): a caption, a question, a change or a label.

    Example:

    ```python
    prompt(FIND_CAPTION)
    prompt(FIND_IMAGE, "a red circle left of a blue star")
    ```
    """
    return f"{instruction} {words}\n" if words else f"{instruction}\n"
