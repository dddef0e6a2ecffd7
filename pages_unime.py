"""Pages of PDF files as images, rendered by pypdfium2 (`pip install "unime[pdf]"`)."""

import os
import re
import threading
from dataclasses import dataclass

from PIL import Image

DPI = 150  # pixels an inch: a page of A4 has 1240 x 1754
_PAGE = re.compile(r"(?P<path>.*\.pdf)(?:#page=(?P<number>\d+))?", re.IGNORECASE | re.DOTALL)
_LOCK = threading.Lock()  # PDFium takes one call at a time


@dataclass(frozen=True)
class PdfPage:
    """A page of a PDF.

    Args:
        path (`str`): the file.
        number (`int`, *optional*): of the page, from 1; without one, the file must have a single page.
    """

    path: str
    number: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels at which the page is rendered.

        Raises:
            ValueError: there is no such page, or the file is not a PDF or has a password.
        """
        return self._with_page(lambda page: tuple(max(1, round(side * DPI / 72)) for side in page.get_size()))

    def render(self) -> Image.Image:
        """The page as an image in RGB, on white.

        Raises:
            ValueError: as [`size`].
        """
        width, height = self.size
        image = self._with_page(lambda page: page.render(scale=DPI / 72).to_pil().convert("RGB"))
        return image if image.size == (width, height) else image.resize((width, height))

    def _with_page(self, use):
        """What `use` makes of the open page."""
        pdfium = _library()
        if not os.path.isfile(self.path):
            raise ValueError("there is no such file")

        # PDFium is not made for several threads
        with _LOCK:
            try:
                document = pdfium.PdfDocument(self.path)
            except pdfium.PdfiumError as error:
                raise ValueError(f"it is not a PDF that can be opened ({error})") from error
            try:
                return use(document[self._index(len(document))])
            finally:
                document.close()

    def _index(self, count: int) -> int:
        """The place of the page among `count`, from 0."""
        if self.number is None and count > 1:
            raise ValueError(f"it has {count} pages; name one of them: {os.path.basename(self.path)}#page=1")
        if self.number is not None and not 1 <= self.number <= count:
            raise ValueError(f"it has no page {self.number}, but the pages 1 to {count}")
        return (self.number or 1) - 1


def page_of(source) -> PdfPage | None:
    """The page that a path names, or None where it is not one of a PDF.

    Example:

    ```python
    page_of("report.pdf#page=3")  # PdfPage("report.pdf", 3)
    ```
    """
    if not isinstance(source, (str, os.PathLike)):
        return None
    match = _PAGE.fullmatch(os.fspath(source)) if isinstance(os.fspath(source), str) else None
    if match is None:
        return None
    return PdfPage(match["path"], int(match["number"]) if match["number"] else None)


def count_pages(path) -> int:
    """How many pages a PDF has.

    Raises:
        ValueError: it is not a PDF, or has a password.
    """
    pdfium = _library()
    with _LOCK:
        try:
            document = pdfium.PdfDocument(path)
        except pdfium.PdfiumError as error:
            raise ValueError(f"{path} is not a PDF that can be opened ({error}).") from error
        try:
            return len(document)
        finally:
            document.close()


def _library():
    """pypdfium2, which is needed only where there is a PDF."""
    try:
        import pypdfium2
    except ImportError as error:
        raise ValueError('pages of PDFs are read by pypdfium2: pip install "unime[pdf]"') from error
    return pypdfium2


__all__ = ["PdfPage", "count_pages", "page_of"]
