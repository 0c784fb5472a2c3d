"""TLS before an endpoint of this machine: connections are decrypted here, and passed on over loopback.

Ray Serve can encrypt, but it does not ask clients for their certificates: `ssl_ca_certs` alone leaves uvicorn's
`ssl_cert_reqs` at none. Here a connection without a certificate that `client_ca` signed ends in the handshake.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from tomoray.errors import Fatal
from tomoray.serving_config import TlsConfig

_PART = 256 * 1024
_HANDSHAKE_S = 10.0


@contextmanager
def decrypting(tls: TlsConfig, host: str, port: int, to_port: int) -> Iterator[None]:
    """Answer TLS at `host`:`port` with what answers at loopback's `to_port`, until the `with` ends.

    Raises:
        Fatal: a certificate or key cannot be read, or the place is taken.
    """
    context = _context(tls)
    started: Future[Callable[[], object]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(context, host, port, to_port, started)), daemon=True)
    thread.start()
    try:
        stop = started.result()
    except OSError as error:
        raise Fatal(f"cannot listen at {host}:{port} ({error.strerror}); choose another --port or --host") from error
    try:
        yield
    finally:
        stop()
        thread.join()


async def _serve(
    context: ssl.SSLContext, host: str, port: int, to_port: int, started: Future[Callable[[], object]]
) -> None:
    """Listen until what `started` gives is called; open connections end then."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    passing: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if stopped.is_set():  # its handshake ended late; a task begun now would not be cancelled with the others
            writer.transport.abort()
            return
        task = loop.create_task(_pass_on(reader, writer, to_port))
        passing.add(task)  # the loop holds tasks weakly, and nothing else holds one whose client has gone
        task.add_done_callback(passing.discard)

    try:
        server = await asyncio.start_server(connected, host, port, ssl=context, ssl_handshake_timeout=_HANDSHAKE_S)
    except OSError as error:
        started.set_exception(error)
        return
    started.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
    await stopped.wait()
    server.close()


def _context(tls: TlsConfig) -> ssl.SSLContext:
    assert tls.certificate is not None, "asked for only with TLS"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        found = error.strerror or type(error).__name__
        raise Fatal(f"tls: certificate, key or client_ca cannot be read ({found}); wanted PEM files") from error
    return context


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_port: int) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", to_port)
    except OSError:
        writer.close()
        return
    try:
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
    except OSError:  # one of both has gone
        pass
    finally:
        for each in (writer, inner_writer):
            each.close()
            with suppress(OSError, asyncio.CancelledError):
                await each.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PART):
        writer.write(data)
        await writer.drain()
    with suppress(OSError, NotImplementedError):  # TLS knows no half-closed connection
        if writer.can_write_eof():
            writer.write_eof()
        else:
            writer.close()
