"""Start the page: `python app.py [--model ID_OR_DIR] [--runs DIR] [--allow-model ID] [--host H] [--port P]`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sab.errors import SabError
from sab.terminal import Parser

if TYPE_CHECKING:
    from viz.pages.offers import Offers


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; on a Hugging Face Space nothing is given and the environment decides. SabError for mistakes."""
    parser = Parser(
        prog="python app.py",
        description="See which weights of a vision-language model serve vision, language or both.",
    )
    parser.add_argument("--model", default=None, help="a Hugging Face id or a directory (default: embedded)")
    parser.add_argument(
        "--allow-model",
        action="append",
        default=[name for name in os.environ.get("SAB_ALLOW_MODELS", "").split(",") if name.strip()],
        metavar="ID_OR_DIR",
        help="a further model that visitors may open; may be repeated, or given as SAB_ALLOW_MODELS with commas",
    )
    parser.add_argument(
        "--any-model",
        action="store_true",
        help="visitors may open any model; so it is anyway where only this machine reaches the page",
    )
    parser.add_argument("--runs", type=Path, action="append", default=[], help="a directory of your own runs")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860")
    return parser.parse_args(arguments)


def offers(options: argparse.Namespace) -> Offers:
    """Which models visitors may open: any where only this machine reaches the page, else those of a list. SabError for
    what is neither a folder with a model nor an id of the hub."""
    from viz.pages.offers import Offers, is_local

    local = is_local(options.host, os.environ.get("SPACE_ID")) and not options.any_model
    first = _model(options.model) if options.model is not None else None
    return Offers(first, tuple(map(_model, options.allow_model)), local or options.any_model, local)


def _model(text: str) -> str:
    from viz.pages.offers import model_named

    model = model_named(text.strip())
    if Path(model).is_dir() and not (Path(model) / "config.json").exists():
        raise SabError(f"The folder {model} holds no config.json, so it is no model; name one that does.")
    return model


def check(options: argparse.Namespace) -> None:
    """SabError for runs that are no directory, and for an address at which nothing can be served."""
    for runs in options.runs:
        if not next(place for place in (runs, *runs.absolute().parents) if place.exists()).is_dir():
            raise SabError(f"--runs {runs} is no directory; name one, or one that is still to be made.")
    if options.port is not None and not 0 < options.port < 2**16:
        raise SabError(f"--port {options.port} is no port; choose one from 1 to 65535.")
    host = options.host.strip("[]")
    try:
        family, *_, address = socket.getaddrinfo(host, options.port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: no wait after a restart
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        where = host if options.port is None else f"{host}, port {options.port}"
        raise SabError(
            f"Nothing can be served at {where} ({getattr(error, 'strerror', None) or error}); "
            "name an address of this machine with --host and a free port with --port."
        ) from error


def main(arguments: list[str]) -> int:
    """Serve until interrupted; wrong arguments give one sentence and exit code 2 before the server starts."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # its downloads run in threads that hear of no stop
    try:
        options = parse(arguments)
        check(options)
        offered = offers(options)
        from viz.pages import shell  # these bring gradio, for which no mistake has to wait
        from viz.pages.site import Site
        from viz.pages.store import Store

        store = Store(offered.first, options.runs)
        site = Site(store, offered, options.runs)
        blocks = site.blocks(store)
        _, url, _ = blocks.launch(
            server_name=options.host,
            server_port=options.port,
            prevent_thread_lock=True,
            app_kwargs=site.app_options(),
            **shell.launch_options(),
        )
    except (SabError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    print(f"SAB Lens: {url}", flush=True)
    store.load_in_background()
    blocks.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
