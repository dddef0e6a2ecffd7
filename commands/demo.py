"""A page in the browser that searches a folder of images: the command `unime demo`.

unime demo --model outputs/quickstart/model --images photos/ --reranker outputs/backbone

The images are embedded when it starts, and the embeddings kept; whatever is added to the folder, changed in it or
removed from it while the page is open is noticed at the next search.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from huggingface_hub.constants import HF_HOME

from ..images_unime import load_frames, open_image
from ..jobs.embedding import Embedder
from ..jobs.reranking import Reranker
from ..jobs.shards import fingerprint
from .encode import encode
from .index import stamp
from .inputs import one_item, read_items
from .search import Searcher, rerank

CACHE = Path(HF_HOME) / "unime"
KEPT = 3600  # seconds for which shown pictures lie in the temporary folder
SIDE = 768  # pixels of the longer side of a picture on the page


class Photos:
    """A folder of images, embedded and kept so.

    Args:
        folder: every image and video below it.
        embedder ([`~unime.jobs.embedding.Embedder`]).
        cache: folder of the embeddings, by default `unime` below `HF_HOME`.
    """

    def __init__(self, folder, embedder: Embedder, cache=None):
        self.folder, self.embedder = Path(folder).resolve(), embedder
        made = fingerprint([str(self.folder), json.dumps(embedder.settings(), sort_keys=True)])
        self.path = Path(cache or CACHE) / f"{self.folder.name}-{made}.parquet"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.failed, self._seen, self._searcher, self._lock = [], None, None, Lock()

    def refresh(self) -> Searcher:
        """Embeds what is new or has changed since the last call.

        Returns:
            what answers queries; `failed` then lists the files that could not be read, with the reason.

        Raises:
            ValueError: the folder holds no image, or none that can be read.
        """
        with self._lock:
            listing = [(name, stamp(item)) for name, item in read_items([str(self.folder)])]
            if listing != self._seen:
                index, _, self.failed = encode([str(self.folder)], self.embedder, self.path, update=True)
                self._searcher, self._seen = Searcher(index, self.embedder), listing
            return self._searcher

    def search(self, query: dict, top: int, reranker: Reranker | None) -> list[tuple]:
        """The answers as `(image, caption)`, best first.

        Raises:
            ValueError: the query cannot be read, or the folder holds nothing that can.
        """
        searcher = self.refresh()
        found = searcher.search(query, top)
        if reranker is None:
            rows = [{"index": i, "similarity": similarity} for i, similarity in found]
        else:
            rows = rerank(reranker, query, searcher.index.items, found)
        return [self._answer(searcher, place, row) for place, row in enumerate(rows, 1)]

    def status(self, reranked: bool = False) -> str:
        """What the last search looked through, in words."""
        order = "by the reranker's score (in brackets the cosine similarity)" if reranked else "by cosine similarity"
        names = ", ".join(error["id"] for error in self.failed[:5]) + ", ..." * (len(self.failed) > 5)
        failed = f" {len(self.failed)} files cannot be read: {names}." if self.failed else ""
        return f"{len(self._searcher.index.names)} images, {order}.{failed}"

    def _answer(self, searcher: Searcher, place: int, row: dict) -> tuple:
        name, item = searcher.index.names[row["index"]], searcher.index.items[row["index"]]
        shown = open_image(load_frames(item.image, 1)[0] if item.is_video else item.image)
        shown.thumbnail((SIDE, SIDE))
        similarity = f"{row['similarity']:.3f}"
        scores = f"{row['score']:.3f} ({similarity})" if "score" in row else similarity
        return shown, f"{place}. {scores} {name}"


def page(photos: Photos, reranker: Reranker | None = None, instruction: str = ""):
    """The page, as `gradio.Blocks`; its images are embedded before it is returned.

    Args:
        photos ([`Photos`]).
        reranker ([`~unime.jobs.reranking.Reranker`], *optional*): puts the answers in its own order where asked.
        instruction (`str`): what stands in the field of that name at first.
    """
    import gradio

    def search(text, image, instruction, top, reranked, progress=gradio.Progress(track_tqdm=True)):  # noqa: B008 - where gradio looks for it
        text = (text or "").strip()
        if not text and not image:
            return [], "Type a text, drop an image, or both."
        if image:
            try:
                open_image(image)
            except ValueError:
                return [], f"**{Path(image).name}** cannot be read as an image."
        try:
            query = one_item(text, image, (instruction or "").strip())
            answers = photos.search(query, int(top), reranker if reranked else None)
        except (ValueError, OSError) as error:
            return [], f"**Nothing was searched:** {str(error).replace(str(photos.folder), photos.folder.name)}"
        return answers, photos.status(reranked)

    photos.refresh()
    with gradio.Blocks(title="UniME", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gradio.Markdown(f"# UniME\nSearch **{photos.folder.name}** by text, by image, or by both.")
        with gradio.Row():
            with gradio.Column(scale=1):
                text = gradio.Textbox(label="Text", placeholder="a red circle left of a blue star", autofocus=True)
                image = gradio.Image(label="Image", sources=["upload", "clipboard"], height=220)
                image.preprocess = lambda file: file.path if file else None  # as it came, to refuse it in our words
                said = gradio.Textbox(instruction, label="Instruction", placeholder="put before the text")
                top = gradio.Slider(1, 48, value=12, step=1, label="Answers")
                reranked = gradio.Checkbox(label="Rerank", visible=reranker is not None)
                button = gradio.Button("Search", variant="primary")
            with gradio.Column(scale=3):
                status = gradio.Markdown(photos.status())
                gallery = gradio.Gallery(label="Answers", columns=4, height=720, object_fit="contain")
        inputs = [text, image, said, top, reranked]
        gradio.on(
            [button.click, text.submit, said.submit, reranked.input],
            search,
            inputs,
            [gallery, status],
            api_name="search",
        )
    return blocks


def look() -> dict:
    """What `launch` of the page takes so that nothing is fetched from elsewhere."""
    import gradio

    return {"theme": gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])}


def main(arguments=None):
    """The command `unime demo`."""
    parser = argparse.ArgumentParser(
        prog="unime demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or repository of an embedder")
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--reranker", help="folder or repository of a reranker or stock VLM")
    parser.add_argument("--strategy", default="pointwise", help="of the reranker: pointwise, listwise or fused")
    parser.add_argument("--instruction", default="", help="put before the text, unless another is typed")
    parser.add_argument("--preset", help="prompts, for a stock VLM")
    parser.add_argument("--dtype", default="auto", help="bfloat16, ...; auto is the checkpoint's own")
    parser.add_argument("--cache", default=CACHE, help="folder for the embeddings (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 shows the page to the network")
    parser.add_argument("--port", type=int, help="7860 or the next free one by default")
    parser.add_argument("--no-browser", action="store_true", help="only say where the page is")
    options = parser.parse_args(arguments)
    if find_spec("gradio") is None:
        raise SystemExit('unime demo: gradio is not installed; `pip install "gradio>=6"`.')
    try:
        if not Path(options.images).is_dir():
            raise ValueError(f"{options.images} is no folder.")
        photos = Photos(
            options.images, Embedder(options.model, preset=options.preset, dtype=options.dtype), options.cache
        )
        reranker = Reranker(options.reranker, options.strategy, options.dtype) if options.reranker else None
        blocks = page(photos, reranker, options.instruction)
        _, url, _ = blocks.launch(
            server_name=options.host,
            server_port=options.port,
            inbrowser=not options.no_browser,
            quiet=True,
            prevent_thread_lock=True,
            **look(),
        )
    except (ValueError, OSError, OverflowError) as error:  # the last of a port that is none
        raise SystemExit(f"unime demo: {error}") from error
    print(f"The page is at {url} until Ctrl-C ends it.", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    main()
