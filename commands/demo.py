"""A page in the browser that searches a folder of images: the command `unime demo`.

unime demo --model outputs/quickstart/model --images photos/ --reranker outputs/backbone

The images are embedded when it starts, and the embeddings kept; whatever is added to the folder, changed in it or
removed from it while the page is open is noticed at the next search.
"""

import json
import stat
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from huggingface_hub.constants import HF_HOME

from ..data.item_sources import read_items
from ..files.addresses import make_folder
from ..files.identity import verify_files
from ..images_unime import load_frames, open_image
from ..jobs.embedding import Embedder
from ..jobs.reranking import Reranker
from ..jobs.shards import by_content, fingerprint
from .encode import encode
from .errors import one_line_errors
from .index import read_index, stamp
from .inputs import one_item
from .parsers.demo import read
from .search import Searcher, as_rows, rerank
from .time_limit import within

CACHE = Path(HF_HOME) / "unime"
PICTURE_LIFETIME = 3600  # seconds for which shown pictures lie in the temporary folder
SIDE = 768  # pixels of the longer side of a picture on the page
UPLOAD_BYTES = 50 * 2**20  # of the largest picture that a visitor may upload
UPLOAD_PIXELS = 50_000_000  # of the same
TEXT_LENGTH = 20_000  # characters of the longest text that a visitor may search for
SECONDS = 120  # after which a search is ended
NAMED_FAILURES = 5  # files that cannot be read, of which the page gives the names


class Photos:
    """A folder of images with their embeddings, which are kept on disk and follow the folder's changes.

    Args:
        folder: every image and video below it.
        embedder ([`~unime.jobs.embedding.Embedder`]): what embeds images and queries.
        cache (*optional*): folder of the embeddings, by default `unime` below `HF_HOME`.

    Example:

    ```python
    photos = Photos("photos", Embedder("outputs/quickstart/model"))
    for picture, caption in photos.search({"text": "a red circle"}, top=3, reranker=None):
        print(caption)
    ```
    """

    def __init__(self, folder, embedder: Embedder, cache=None):
        self.folder = Path(folder).resolve()
        self.embedder = embedder

        # one file for each folder and way of embedding
        identity = fingerprint([str(self.folder), json.dumps(by_content(embedder.settings()), sort_keys=True)])
        self.path = Path(cache or CACHE) / f"{self.folder.name[:60]}-{identity}.parquet"
        make_folder(self.path.parent)

        self.failed = []
        self._listing = None  # of the folder when it was last embedded
        self._searcher = None
        self._lock = Lock()  # visitors search at the same time

    def refresh(self) -> Searcher:
        """Embeds what is new or has changed since the last call.

        Returns:
            what answers queries; `failed` then lists the files that could not be read, with the reason.

        Raises:
            ValueError: the folder holds no image, or none that can be read.
        """
        with self._lock:
            # files that have not changed are not read again, so every search looks
            listing = [(name, stamp(item)) for name, item in read_items([str(self.folder)])]

            if listing != self._listing:
                self._drop_damaged()
                encoded = encode([str(self.folder)], self.embedder, self.path, update=True)
                self.failed = encoded.failed
                self._searcher = Searcher(encoded.index, self.embedder)

                # last: where embedding failed, the next search tries again
                self._listing = listing
            return self._searcher

    def _drop_damaged(self):
        """Removes embeddings that cannot be read: they are only kept to save time."""
        if self.path.exists():
            try:
                read_index(self.path)
            except ValueError as error:
                print(f"{error} The images are embedded again.", file=sys.stderr, flush=True)
                self.path.unlink()

    def search(self, query: dict, top: int, reranker: Reranker | None) -> list[tuple]:
        """The best answers to a query.

        Args:
            query (`dict`): an item as `encode` takes it.
            top (`int`): how many.
            reranker ([`~unime.jobs.reranking.Reranker`], *optional*): puts them in its own order.

        Returns:
            `list[tuple]`: `(image, caption)`, best first.

        Raises:
            ValueError: the query cannot be read, or the folder holds nothing that can.
        """
        searcher = self.refresh()
        matches = searcher.search(query, top)

        rows = as_rows(matches)
        if reranker is not None:
            rows = rerank(reranker, query, searcher.index.items, matches)
        return [self._answer(searcher, place, row) for place, row in enumerate(rows, 1)]

    def status(self, reranked: bool = False) -> str:
        """What the last search looked through, in words.

        Args:
            reranked (`bool`, defaults to `False`): whether the answers are in a reranker's order.
        """
        order = "by cosine similarity"
        if reranked:
            order = "by the reranker's score (in brackets the cosine similarity)"
        text = f"{len(self._searcher.index.names)} images, {order}."
        if not self.failed:
            return text

        names = [error["id"] for error in self.failed[:NAMED_FAILURES]]
        if len(self.failed) > NAMED_FAILURES:
            names.append("...")
        return f"{text} {len(self.failed)} files cannot be read: {', '.join(names)}."

    def _answer(self, searcher: Searcher, place: int, row: dict) -> tuple:
        """An answer's picture, small, and its caption: `1. score (similarity) name`."""
        name = searcher.index.names[row["index"]]
        item = searcher.index.items[row["index"]]
        source = load_frames(item.image, 1)[0] if item.is_video else item.image
        picture = open_image(source)
        picture.thumbnail((SIDE, SIDE))  # in place; pages with pictures in full size load slowly

        scores = f"{row['similarity']:.3f}"
        if "score" in row:
            scores = f"{row['score']:.3f} ({scores})"
        return picture, f"{place}. {scores} {name}"


def visitors_picture(path: str, folders: list) -> str:
    """A picture that a visitor names, if the page may open it.

    Args:
        path (`str`): what came from the browser or from a program, which may be any path.
        folders (`list[Path]`): those whose files may be opened: of uploads, and the one that is searched.

    Returns:
        `str`: the path without symbolic links.

    Raises:
        ValueError: it is not a regular file below one of the folders, it is too large, or it is not a picture. The
            message names only the last part of the path, and never says whether another file exists.
    """
    name = Path(path).name
    try:
        resolved = Path(path).resolve(strict=True)
        status = resolved.stat()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"{name} is not an uploaded picture.") from error

    # a device or a pipe could be waited for without end
    is_below = any(resolved.is_relative_to(Path(folder).resolve()) for folder in folders)
    if not is_below or not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name} is not an uploaded picture.")
    if status.st_size > UPLOAD_BYTES:
        raise ValueError(f"{name} is larger than {UPLOAD_BYTES >> 20} MB.")

    # in words of ours, without the temporary path
    try:
        open_image(resolved, UPLOAD_PIXELS)
    except ValueError as error:
        reason = f"has more than {UPLOAD_PIXELS:,} pixels" if "pixels" in str(error) else "cannot be read as an image"
        raise ValueError(f"{name} {reason}.") from error
    return str(resolved)


def page(photos: Photos, reranker: Reranker | None = None, instruction: str = ""):
    """The page, as `gradio.Blocks`; its images are embedded before it is returned.

    Args:
        photos ([`Photos`]): the folder that is searched.
        reranker ([`~unime.jobs.reranking.Reranker`], *optional*): puts the answers in its own order where asked.
        instruction (`str`): what stands in the field of that name at first.

    Example:

    ```python
    page(Photos("photos", Embedder("outputs/quickstart/model"))).launch(**look())
    ```
    """
    import gradio
    from gradio.utils import get_upload_folder

    # the names of its parameters are those of the page's API
    def search(text, image, instruction, top, reranked, progress=gradio.Progress(track_tqdm=True)):  # noqa: B008 - where gradio looks for it
        text = (text or "").strip()  # None while the field was never touched
        if not text and not image:
            return [], "Type a text, drop an image, or both."
        if len(text) + len(instruction or "") > TEXT_LENGTH:
            return [], f"A text has at most {TEXT_LENGTH:,} characters."

        # a program that calls the page's API may name any path of this machine
        if image:
            try:
                image = visitors_picture(image, [get_upload_folder(), photos.folder])
            except ValueError as error:
                return [], str(error)

        try:
            query = one_item(text, image, (instruction or "").strip())
            answers = within(SECONDS, photos.search, query, int(top), reranker if reranked else None)
        except (ValueError, OSError) as error:
            # visitors need not learn where the folder lies
            return [], f"**Nothing was searched:** {str(error).replace(str(photos.folder), photos.folder.name)}"
        return answers, photos.status(reranked)

    # before the page is shown, so that the first visitor does not wait
    photos.refresh()
    placeholder = photos.embedder.default_instruction() or "put before the text"

    lifetimes = (PICTURE_LIFETIME, PICTURE_LIFETIME)  # seconds between two clearings, and of a picture
    with gradio.Blocks(title="UniME", analytics_enabled=False, delete_cache=lifetimes) as blocks:
        gradio.Markdown(f"# UniME\nSearch **{photos.folder.name}** by text, by image, or by both.")
        with gradio.Row():
            with gradio.Column(scale=1):
                text = gradio.Textbox(label="Text", placeholder="a red circle left of a blue star", autofocus=True)
                image = gradio.Image(label="Image", sources=["upload", "clipboard"], height=220)
                image.preprocess = lambda file: file.path if file else None  # as it came, to refuse it in our words
                image.async_move_resource_to_block_cache = _uploads_only(image)
                instruction_box = gradio.Textbox(instruction, label="Instruction", placeholder=placeholder)
                top = gradio.Slider(1, 48, value=12, step=1, label="Answers")
                reranked = gradio.Checkbox(label="Rerank", visible=reranker is not None)
                button = gradio.Button("Search", variant="primary")
            with gradio.Column(scale=3):
                status = gradio.Markdown(photos.status())
                gallery = gradio.Gallery(label="Answers", columns=4, height=720, object_fit="contain")

        # one event under one name, whichever way a search is started
        gradio.on(
            [button.click, text.submit, instruction_box.submit, reranked.input],
            search,
            [text, image, instruction_box, top, reranked],
            [gallery, status],
            api_name="search",
        )
    return blocks


def _uploads_only(image) -> Callable:
    """What keeps a file that came for an image component, but fetches no address, as gradio would."""
    import gradio

    keep = image.async_move_resource_to_block_cache

    async def keep_upload(path):
        if "://" in str(path):
            raise gradio.Error("Only an uploaded picture is read, not an address.")
        return await keep(path)

    return keep_upload


def look() -> dict:
    """What `launch` of the page takes so that nothing is fetched from elsewhere, and no upload is too large."""
    import gradio

    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return {"theme": theme, "max_file_size": UPLOAD_BYTES}


def execute(options):
    """Does what the options of `unime demo` say."""
    if options.verify:
        verify_files()

    # before the images are embedded, which may take an hour
    if find_spec("gradio") is None:
        raise SystemExit('unime demo: gradio is not installed; `pip install "gradio>=6"`.')

    with one_line_errors("unime demo"):
        blocks = _page_of(options)
        url = _launch(blocks, options)
    print(f"The page is at {url} until Ctrl-C ends it.", flush=True)  # at once, also into a pipe
    blocks.block_thread()


def _page_of(options):
    """The page that a command line asks for."""
    if not Path(options.images).is_dir():
        raise ValueError(f"{options.images} is not a folder.")

    embedder = Embedder.of(options)
    photos = Photos(options.images, embedder, options.cache)

    reranker = None
    if options.reranker:
        reranker = Reranker(
            options.reranker, options.strategy, options.dtype, options.trust_remote_code, options.reranker_preset
        )
    return page(photos, reranker, options.instruction or "")


def _launch(blocks, options) -> str:
    """Starts serving the page, and returns its address."""
    try:
        _, url, _ = blocks.launch(
            server_name=options.host,
            server_port=options.port,
            inbrowser=not options.no_browser,
            quiet=True,
            prevent_thread_lock=True,
            **look(),
        )
    except OverflowError as error:
        raise ValueError(f"--port {options.port} is not a port: {error}") from error
    return url


def main(arguments=None):
    """The command `unime demo`."""
    execute(read(arguments))


if __name__ == "__main__":
    main()
