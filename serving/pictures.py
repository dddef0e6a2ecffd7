"""Pictures that requests carry: within themselves as data URIs, or at addresses of hosts that are allowed."""

import base64
import binascii
import io
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import urllib3
from PIL import Image

from ..images_unime import FORMATS, open_image
from ..urls_unime import is_public
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
        self.timeout = urllib3.Timeout(connect=seconds, read=seconds)
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

        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        with self._pool(parts.scheme, host, port) as pool:
            try:
                return self._read(pool, path, place, address)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Refusal(f"{shown(address)} cannot be fetched ({type(error).__name__}).") from error

    def _pool(self, scheme: str, host: str, port: int | None):
        """Connections to the address of a host that was looked at: a second look-up could give another."""
        port = port or (443 if scheme == "https" else 80)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Refusal(f"the host {host} is not known.") from error
        address = found[0][4][0]
        if not self.may_connect(address):
            raise Refusal(f"the host {host} is not fetched from: its address is not public.")

        if scheme == "http":
            return urllib3.HTTPConnectionPool(address, port, timeout=self.timeout)
        # the certificate is that of the name
        return urllib3.HTTPSConnectionPool(
            address, port, timeout=self.timeout, server_hostname=host, assert_hostname=host
        )

    def _read(self, pool, path: str, place: str, address: str) -> bytes:
        """The content of an answer, which has a limit."""
        answer = pool.request(
            "GET", path, headers={"Host": place}, redirect=False, retries=False, preload_content=False
        )
        if answer.status != 200:
            raise Refusal(f"{shown(address)} cannot be fetched: its host answers with status {answer.status}.")

        content = answer.read(self.most_bytes + 1)
        if len(content) > self.most_bytes:
            raise Refusal(f"the picture at {shown(address)} has more than {self.most_bytes:,} bytes.")
        return content


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
        content = _decoded(source, name) if source.startswith("data:") else self.fetch(source)

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


def _decoded(uri: str, name: str) -> bytes:
    """The content of a data URI."""
    header, comma, data = uri.partition(",")
    if not comma or not header.endswith(";base64"):
        raise Refusal(f"{name}: the data URI must be written as data:image/png;base64,....")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(f"{name}: the data URI is not base64 ({error}).") from error


def shown(address: str) -> str:
    """The beginning of an address, for a message."""
    return repr(address if len(address) <= 80 else address[:77] + "...")
