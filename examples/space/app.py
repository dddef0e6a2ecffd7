"""A Space that searches its own folder of images with a UniME model.

Set `UNIME_MODEL` in the Space's settings, and put the images into `images/`. Settings that may be left out:
`UNIME_RERANKER` (a judge that can reorder the best results), `UNIME_INSTRUCTION` (the instruction that the page begins
with) and `UNIME_IMAGES` (another folder of images).
"""

import os

from unime.commands.demo import Photos, look, page
from unime.jobs.embedding import Embedder
from unime.jobs.reranking import Reranker

photos = Photos(os.environ.get("UNIME_IMAGES", "images"), Embedder(os.environ["UNIME_MODEL"]))

reranker = None
if os.environ.get("UNIME_RERANKER"):
    reranker = Reranker(os.environ["UNIME_RERANKER"])

# embeds the images that are new, which may take a while at the first start
blocks = page(photos, reranker, os.environ.get("UNIME_INSTRUCTION", ""))

if __name__ == "__main__":
    blocks.launch(**look())
