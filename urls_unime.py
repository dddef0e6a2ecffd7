"""Images by `https://` addresses: fetched where that is allowed, never from a private address, and kept.

An address comes from data that somebody else may have written. So the machine that a name stands for is looked up
first, and the connection is made to the very address that was checked; the same holds after every redirection.
"""

import hashlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, quote, urljoin, urlsplit

URL = re.compile(r"https?://", re.IGNORECASE)
TIMEOUT = 20  # seconds for a connection, and for each piece that is read
MOST_BYTES = 100_000_000
MOST_REDIRECTIONS = 5
_OF_PATHS = "/%:@!$&'()*+,;=~"  # what stands in a path as it is
_OF_QUERIES = _OF_PATHS + "?"
_REDIRECTED = (301, 302, 303, 307, 308)
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")  # outside it, some networks stand for those of IPv4
_HF_HOME = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
CACHE = Path(os.environ.get("UNIME_CACHE") or Path(_HF_HOME, "unime")).expanduser() / "fetched"


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, and none of a private network, of this machine or a link.

    Args:
        address (`str`): IPv4 or IPv6.

    Example:

    ```python
    is_public("10.0.0.1")  # False
    ```
    """
    ip = ipaddress.ip_address(address)
    if ip.version == 6:
        # those that lead to an IPv4 address, which may be any
        leads_elsewhere = ip.ipv4_mapped or ip.sixtofour or ip.teredo
        if leads_elsewhere or ip not in _GLOBAL_V6:
            return False
    return ip.is_global and not ip.is_multicast


class PrivateAddressError(ValueError):
    """A name stands for a machine that is never read from."""


def fetch(url: str, allowed: bool, how: str = "allow_urls=True") -> str:
    """Downloads what an address names, unless it was downloaded before.

    Args:
        url (`str`): an `https://` address.
        allowed (`bool`): whether it may be read.
        how (`str`): what allows it, for the message.

    Returns:
        `str`: the path of the file.

    Raises:
        ValueError: it is not allowed, not `https`, of a private network, too large, or cannot be read.
    """
    shown = url if len(url) <= 120 else url[:117] + "..."
    if not allowed:
        raise ValueError(f"{shown} is an address; {how} lets it be read, where you trust the data.")

    # a file has the name of its address; a changed picture is fetched anew where this file is deleted
    suffix = Path(urlsplit(url).path).suffix[:8]
    target = CACHE / (hashlib.blake2b(url.encode(), digest_size=16).hexdigest() + suffix)
    if not target.exists():
        try:
            content = download(url)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(f"{shown} cannot be read: {error}.") from error
        _write(target, content)
    return str(target)


def download(
    url: str,
    schemes: tuple[str, ...] = ("https",),
    redirections: int = MOST_REDIRECTIONS,
    most_bytes: int | None = None,
    seconds: float = TIMEOUT,
    may_connect: Callable[[str], bool] | None = None,
) -> bytes:
    """What lies at an address.

    Args:
        url (`str`): the address.
        schemes (defaults to `("https",)`): of it, and of those that it is redirected to.
        redirections (`int`, defaults to 5): how many are followed.
        most_bytes (`int`, *optional*): of the content; 100,000,000 by default.
        seconds (`float`, defaults to 20): for a connection, and for each piece that is read.
        may_connect (*optional*): tells of an IP address whether it may be read from; [`is_public`] by default.

    Raises:
        PrivateAddressError: it leads to an IP address that may not be read from.
        ValueError: it has another scheme, is redirected too often, too large, or answered by an error.
        OSError, http.client.HTTPException: there is no connection, or no answer.
    """
    if most_bytes is None:
        most_bytes = MOST_BYTES

    for _ in range(redirections + 1):
        parts = urlsplit(url)
        if parts.scheme.lower() not in schemes or not parts.hostname:
            raise ValueError(f"only {' and '.join(f'{scheme}://' for scheme in schemes)} is read")

        # checked anew for every address on the way
        connection = _connection(parts, seconds, may_connect or is_public)
        try:
            connection.request("GET", _target(parts), headers={"User-Agent": "unime"})
            response = connection.getresponse()

            if response.status in _REDIRECTED and redirections:
                url = urljoin(url, response.getheader("Location", ""))
                continue
            if response.status != 200:
                raise ValueError(f"the server answers {response.status} {response.reason}")

            # one byte more shows that there is more
            content = response.read(most_bytes + 1)
            if len(content) > most_bytes:
                raise ValueError(f"it has more than {most_bytes:,} bytes")
            return content
        finally:
            connection.close()
    raise ValueError(f"it redirects more than {redirections} times")


def _target(parts: SplitResult) -> str:
    """What is asked of the server, with everything escaped that is not escaped yet."""
    path = quote(parts.path or "/", safe=_OF_PATHS)
    if not parts.query:
        return path
    return f"{path}?{quote(parts.query, safe=_OF_QUERIES)}"


def _connection(parts: SplitResult, seconds: float, may_connect: Callable) -> http.client.HTTPConnection:
    """A connection to the very address that was checked: a second look-up could give another."""
    is_secure = parts.scheme.lower() == "https"
    kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port or kind.default_port, timeout=seconds)

    entries = socket.getaddrinfo(parts.hostname, connection.port, type=socket.SOCK_STREAM)
    addresses = [entry[4][0] for entry in entries]
    for address in addresses:
        if not may_connect(address):
            raise PrivateAddressError(
                f"{parts.hostname} is {address}, an address of a private network, which is never read"
            )

    # the certificate is that of the name
    connection.sock = socket.create_connection((addresses[0], connection.port), seconds)
    if is_secure:
        try:
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
        except OSError:
            connection.close()
            raise
    return connection


def _write(target: Path, content: bytes):
    """Writes a file whole: another process may look for it at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, target)


__all__ = ["URL", "PrivateAddressError", "download", "fetch", "is_public"]
