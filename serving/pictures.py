"""Pictures that requests carry: within themselves as data URIs, or at addresses of hosts that are allowed."""

import http.client
import io
from collections.abc import Callable
from urllib.parse import urlsplit

from PIL import Image

from ..images_unime import FORMATS, open_image, read_data_uri
from ..urls_unime import PrivateAddressError, download, is_public
from .errors import Refusal


class Fetcher:
    """Fetches pictures from the hosts of a list, and from nowhere else.

    Args:
        hosts: names of hosts, such as `"images.example.com"`; with a port if it is not the usual one.
        most_bytes (`int`): of a picture.
        seconds (`float`, defaults to 10): for a connection, and for each answer of it.
        may_connect (`Callable`, defaults to [`is_public`]): tells of an IP address whether a host of the list may
            have it: a name of the list may lead to any address, that of a machine within too.

    Example:

    ```python
    content = Fetcher(["images.example.com"], 2**24)("https://images.example.com/photo.jpg")
    ```
    """

    def __init__(
        self, hosts=(), most_bytes: int = 2**25, seconds: float = 10, may_connect: Callable[[str], bool] = is_public
    ):
        self.hosts = {host.lower() for host in hosts}
        self.most_bytes = most_bytes
        self.seconds = seconds
        self.may_connect = may_connect

    def __call__(self, address: str) -> bytes:
        """What lies at an address.

        Raises:
            Refusal: it may not be fetched, or cannot; redirections are not followed.
        """
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise Refusal(f"{shown(address)} is not an address ({error}).") from error
        place = (host or "") if port is None else f"{host}:{port}"
        if parts.scheme not in ("http", "https") or place not in self.hosts:
            raise Refusal(
                f"{shown(address)} is not fetched: this server only fetches from "
                f"{', '.join(sorted(self.hosts)) or 'no host at all'}. Send the picture as a data URI."
            )

        try:
            return download(
                address, ("http", "https"), 0, self.most_bytes, seconds=self.seconds, may_connect=self.may_connect
            )
        except PrivateAddressError as error:
            # which address it is, is nobody else's business
            raise Refusal(f"the host {host} is not fetched from: its address is not public.") from error
        except ValueError as error:
            raise Refusal(f"{shown(address)} cannot be fetched: {error}.") from error
        except (http.client.HTTPException, OSError) as error:
            raise Refusal(f"{shown(address)} cannot be fetched ({type(error).__name__}).") from error


class PictureReader:
    """Opens the pictures of one request, whose pixels together have a limit.

    Args:
        fetch ([`Fetcher`]): for pictures that are named by an address.
        most_pixels (`int`): of all pictures of the request.
    """

    def __init__(self, fetch: Fetcher, most_pixels: int):
        self.fetch = fetch
        self.most_pixels = most_pixels
        self.pixels = 0  # so far
        self.count = 0

    def open(self, source, name: str) -> Image.Image:
        """A picture, upright and in RGB.

        Args:
            source (`str`): a data URI or an address.
            name (`str`): how errors call it.

        Raises:
            Refusal: it is something else, cannot be read, or is too large.
        """
        if not isinstance(source, str):
            raise Refusal(f"{name}: an image is a data URI or an address, not a {type(source).__name__}.")
        content = self._content(source, name)

        try:
            header = Image.open(io.BytesIO(content), formats=FORMATS)
        except Exception as error:  # a decoder raises anything over a damaged file
            raise Refusal(f"{name}: the image cannot be read; it is of no kind that is known here.") from error

        # from the header, before a small file unfolds to gigabytes
        self.pixels += header.width * header.height
        self.count += 1
        if self.pixels > self.most_pixels:
            raise Refusal(
                f"{name}: the images of the request have more than {self.most_pixels:,} pixels; send smaller ones, or "
                "fewer in a request.",
                status=413,
            )
        try:
            return open_image(header, self.most_pixels)
        except ValueError as error:
            raise Refusal(f"{name}: {error}") from error

    def _content(self, source: str, name: str) -> bytes:
        """The bytes of a picture's file."""
        if not source.startswith("data:"):
            return self.fetch(source)
        try:
            return read_data_uri(source)
        except ValueError as error:
            raise Refusal(f"{name}: {error}.") from error


def shown(address: str) -> str:
    """The beginning of an address, for a message."""
    return repr(address if len(address) <= 80 else address[:77] + "...")
