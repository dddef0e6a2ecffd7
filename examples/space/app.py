"""A Space that searches its own folder of images with a UniME model.

Set `UNIME_MODEL` (and, if wanted, `UNIME_RERANKER`, `UNIME_INSTRUCTION`) in the Space's settings, and put the images
into `images/`.
"""

import os

from unime.commands.demo import Photos, look, page
from unime.jobs.embedding import Embedder
from unime.jobs.reranking import Reranker

reranker = os.environ.get("UNIME_RERANKER")
photos = Photos(os.environ.get("UNIME_IMAGES", "images"), Embedder(os.environ["UNIME_MODEL"]))
blocks = page(photos, Reranker(reranker) if reranker else None, os.environ.get("UNIME_INSTRUCTION", ""))

if __name__ == "__main__":
    blocks.launch(**look())
