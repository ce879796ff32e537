"""Fetching a picture from a public web address, and from no other.

A name may resolve to a machine of the operator's own network, another time than when it was
checked, or send on to one. So it is the address of the connection itself that is checked, at each
step.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from regaze.serving.errors import bad

_STEPS = 4
_SECONDS = 10.0
_PARAM = "messages"


def fetch(url: str, most: int) -> bytes:
    """Get what lies at a public address.

    Args:
        url: http or https.
        most: Bytes that are allowed.

    Raises:
        ApiError: It isn't public, can't be had, or is too large.
    """
    until = time.monotonic() + _SECONDS
    for _ in range(_STEPS):
        try:
            found = _get(urlsplit(url), most, until)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise bad(
                f"a picture can't be fetched: {error}", _PARAM, "unreachable_image"
            ) from error
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise bad(f"a picture's address sends on more than {_STEPS - 1} times", _PARAM)


def public(host: str, port: int) -> str:
    """An address of a host, if all that it has are public.

    Raises:
        ApiError: One isn't: loopback, private, link-local, reserved.
        OSError: It has none.
    """
    found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        ip = ipaddress.ip_address(address.partition("%")[0])
        inner = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
        if not (ip.is_global and inner.is_global) or ip.is_multicast:
            raise bad("a picture's address isn't public, so it isn't fetched", _PARAM)
    return found[0]


def _get(url: SplitResult, most: int, until: float) -> bytes | str:
    """The data at one address, or the address that it redirects to."""
    if url.scheme not in ("http", "https") or not url.hostname:
        raise bad("a picture's address must begin with http:// or https://", _PARAM)
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    address = public(url.hostname, port)
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"it takes longer than {_SECONDS:g} s")
    made = http.client.HTTPConnection(url.hostname, port)
    made.sock = held = socket.create_connection((address, port), timeout=left)
    # A timeout of the socket's is one of each read: a sender that drips would hold the thread.
    clock = threading.Timer(left, lambda: held.shutdown(socket.SHUT_RDWR))
    clock.start()
    try:
        if secure:
            context = ssl.create_default_context()
            made.sock = context.wrap_socket(held, server_hostname=url.hostname)
        made.request("GET", (url.path or "/") + (f"?{url.query}" if url.query else ""))
        answer = made.getresponse()
        if answer.status in (301, 302, 303, 307, 308):
            return answer.getheader("Location") or ""
        if answer.status != 200:
            raise bad(f"a picture's address answers with status {answer.status}", _PARAM)
        data = answer.read(most + 1)
        if len(data) > most:
            raise bad(f"a picture has more than {most} bytes", _PARAM, "image_too_large")
        return data
    finally:
        clock.cancel()
        made.close()
