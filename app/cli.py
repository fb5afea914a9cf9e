"""The `transpector` command; nothing heavy is imported before the arguments are read."""

import argparse
import socket
from collections.abc import Sequence

from transpector import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(
        prog="transpector", description="Look inside a transformer language model."
    )
    parser.add_argument(
        "--model",
        default="builtin",
        help="builtin, a Hugging Face id, a directory or a .gguf file (default: %(default)s)",
    )
    parser.add_argument("--port", type=_port, default=5006, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--address",
        default="127.0.0.1",
        help="address to listen on; anything but %(default)s lets other machines in, without a password",
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="how browsers reach this server, if not by its address; may be given again",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument("--version", action="version", version=f"transpector {__version__}")
    chosen = parser.parse_args(arguments)
    port = _free(chosen.address, chosen.port, parser)
    from transpector.serve import serve  # brings panel, which --help does not wait for

    serve(chosen.model, port, chosen.address, chosen.origin, show=not chosen.no_browser)


def _free(address: str, port: int, parser: argparse.ArgumentParser) -> int:
    """The port, or a free one for 0; ends with a clear sentence if it can't be had."""
    try:
        with socket.create_server((address, port)) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        parser.error(f"can't listen on {address}, port {port}: {error.strerror}. Choose another with --port.")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: choose 0 (any) to 65535")
    return int(text)
