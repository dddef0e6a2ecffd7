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
from pathlib import Path
from urllib.parse import urljoin, urlsplit

URL = re.compile(r"https?://", re.IGNORECASE)
TIMEOUT = 20  # seconds for a connection, and for each piece that is read
MOST_BYTES = 100_000_000
MOST_REDIRECTIONS = 5
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


class _Connection(http.client.HTTPSConnection):
    """A connection to an address that was checked before anything was sent to it."""

    def connect(self):
        host = self.host.strip("[]")
        addresses = [entry[4][0] for entry in socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM)]
        for address in addresses:
            if not is_public(address):
                raise ValueError(f"{self.host} is {address}, an address of a private network, which is never read")

        # not by its name, which may stand for another machine by now
        self.sock = socket.create_connection((addresses[0], self.port), self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=host)


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
            content = _download(url)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(f"{shown} cannot be read: {error}.") from error
        _write(target, content)
    return str(target)


def _download(url: str) -> bytes:
    """The content of an address, through redirections."""
    for _ in range(MOST_REDIRECTIONS):
        parts = urlsplit(url)
        if parts.scheme.lower() != "https" or not parts.hostname:
            raise ValueError("only https:// is read")

        connection = _Connection(parts.hostname, parts.port, timeout=TIMEOUT)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"User-Agent": "unime"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                url = urljoin(url, response.getheader("Location", ""))
                continue
            if response.status != 200:
                raise ValueError(f"the server answers {response.status} {response.reason}")

            content = response.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
            return content
        finally:
            connection.close()
    raise ValueError(f"it redirects more than {MOST_REDIRECTIONS} times")


def _write(target: Path, content: bytes):
    """Writes a file whole: another process may look for it at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, target)


__all__ = ["URL", "fetch", "is_public"]
