"""Addresses that servers listen at."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Tell hosts that only this machine reaches from others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
