"""Words of which options are one, or which their help quotes; a file that loads at once."""

SPLITS = ("original", "diverse_instruction")  # of MMEB-train
SOURCES = (  # what `item_sources.read_items` takes
    "folder of images, image, .pdf (every page), .jsonl, .txt, - (JSON lines), or a file, folder or data set of rows"
)
ROLES = ("query", "positive", "negatives")  # of rows, what it can take as items
KINDS = (  # what `sources.open_source` takes
    "a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .tar), a folder (of pictures with captions, tars, Parquet, "
    "corpus/queries/qrels, or of datasets.save_to_disk), or a data set of the Hub (owner/name[:config][:split])"
)
