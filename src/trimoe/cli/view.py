"""`trimoe view`: serves a local web page over run logs."""

import socket
import sys
import webbrowser
from pathlib import Path

import click

from trimoe.cli.parts.common import emit, json_option, require_extra
from trimoe.errors import MissingPrerequisite
from trimoe.view.catalog import Catalog

LOOPBACK = "127.0.0.1"


@click.command()
@click.argument("logs", metavar="RUNS.db [RUNS2.db ...]", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port on this machine; 0 takes a free one.",
)
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@json_option
def view(logs: tuple[Path, ...], port: int, no_open: bool, as_json: bool) -> None:
    """Browse run logs in a local web page until Ctrl-C.

    The page lists every run with its score and causes, and follows runs that are still being made. A run shows its
    samples by cause, with search; two runs of a bench are compared item by item, flipped items first. The logs
    are never written. The page is reachable from this machine only. `--json` prints the address, then serves as well.

    \b
    Examples:
      trimoe view runs.db
      trimoe view runs.db other.db --port 8600 --no-open
    """
    require_extra("view", "trimoe view")
    catalog = Catalog(logs)
    listening = _listen(port)
    address = f"http://{LOOPBACK}:{listening.getsockname()[1]}/"
    runs = catalog.all()
    emit(
        {"url": address, "logs": [str(log.path) for log in catalog.logs], "runs": len(runs)},
        f"{address}  ({len(runs)} runs; Ctrl-C ends it)",
        as_json,
    )
    sys.stdout.flush()  # a program that waits for the address reads a pipe
    if not no_open and not as_json:
        webbrowser.open(address)
    _serve(catalog, listening)


def _listen(port: int) -> socket.socket:
    """A listening socket on the loopback interface; its port is known before anything is served."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
    except OSError as exc:
        listening.close()
        raise MissingPrerequisite(
            f"port {port} cannot be used",
            expected="a free port on this machine",
            actual=str(exc),
            remedy="choose another --port, or leave it out",
        ) from exc
    listening.listen(128)
    return listening


def _serve(catalog: Catalog, listening: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM, the normal end of this command."""
    import uvicorn

    from trimoe.view.app import make_app

    config = uvicorn.Config(
        make_app(catalog),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        return
    finally:
        listening.close()


COMMANDS = [view]
