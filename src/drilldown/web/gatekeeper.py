"""Who may ask: requests to another host's name, and those that another site's page sends, are refused.

A page on the loopback is open to every site that its user visits: by a name that leads to 127.0.0.1 (DNS rebinding),
or by a form that is sent across sites.
"""

import socket
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Gatekeeper:
    """Middleware that lets requests of this host's own page through, and of programs such as curl."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        """Guard the app; `names` are the host names, besides IP addresses, by which it may be asked."""
        self.app = app
        self.names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        app = JSONResponse({"error": refusal}, 403) if refusal else self.app
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        name = host_name(host)
        if not (name in self.names or is_address(name)):
            return f"Host is {host!r}: it takes an IP address, or {', '.join(sorted(self.names))}"
        if method in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin", f"http://{host}"), headers.get("sec-fetch-site", "none")
        if origin.partition("://")[2] != host or site not in ("same-origin", "none"):
            return f"Origin is {origin!r}: only this server's own page may send pictures"
        return None


def host_name(host: str) -> str:
    """The name or address in a Host header, in lower case, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def is_address(name: str) -> bool:
    """Whether a host is given as an IP address, which no foreign name server can point elsewhere."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def own_names(host: str) -> set[str]:
    """The names of a server that listens on that host."""
    return {"localhost", host, socket.gethostname()} - {""}
