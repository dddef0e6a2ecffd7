"""Words of which options are one, or which their help quotes; a file that loads at once."""

SPLITS = ("original", "diverse_instruction")  # of MMEB-train
SOURCES = "folder of images, image, .jsonl, .txt, or - (JSON lines)"  # what `item_sources.read_items` takes
