"""Fixtures of the browser tests: the app in a child process with a run of its own, and headless Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the processes, and all that they start, share the cores
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import pytest
import torch

from tests.hub_server import Hub, serving

if not torch.cuda.is_available():  # before anything imports Triton: its kernels then run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

ROOT = Path(__file__).parents[1]
START_SECONDS = 180.0  # a busy machine; the page's own ten seconds are measured on a quiet one
BROWSER_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--no-first-run",
]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that drive the page share one process, and with it one app and one browser."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.xdist_group("browser"))


def missing_browser(reason: str) -> None:
    """Skip, or fail where a browser has to be there."""
    if os.environ.get("SAB_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the embedded model, which nobody changes while the tests run."""
    from sab.models import DEMO_MODEL

    return Path(shutil.copytree(DEMO_MODEL, tmp_path_factory.mktemp("model") / "demo-model"))


@pytest.fixture(scope="session")
def run_directory(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run (method sab, few samples) of that model; its folder's name is the run's id."""
    from sab import models
    from sab.recipes import Recipe
    from sab.sequential import quantize

    directory = tmp_path_factory.mktemp("runs") / "browser-run"
    lvlm = models.load(str(model_directory))
    for _ in quantize(lvlm, Recipe(model=str(model_directory), samples=8, iterations=4), directory):
        pass
    return directory


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    """The hub that the app downloads from: one on this machine."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def app_url(
    model_directory: Path, run_directory: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where app.py answers; it runs in a child process and is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "app.log"
    command = [sys.executable, "app.py", "--port", str(port)]
    command += ["--model", str(model_directory), "--runs", str(run_directory.parent)]
    home = str(tmp_path_factory.mktemp("hub"))
    of_the_hub = {"HF_ENDPOINT": hub.url, "HF_HOME": home, "HF_HUB_OFFLINE": "0"}  # that hub is always here
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **of_the_hub}
        )
    url = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"app.py ended by itself:\n{log.read_text()}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"app.py did not answer within {START_SECONDS:.0f} s:\n{log.read_text()}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, the system's."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing_browser("Playwright is not installed.")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        missing_browser("No Chromium is installed.")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=BROWSER_ARGUMENTS)
        yield launched
        launched.close()


class Visitor:
    """A browser window of one person; `errors` are what the scripts of the page threw or logged. With milliseconds in
    the environment variable SAB_BROWSER_LATENCY the server seems that far away, and what depends on it being quick
    fails."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(120_000)
        if latency := os.environ.get("SAB_BROWSER_LATENCY"):
            network = {"offline": False, "latency": float(latency), "downloadThroughput": -1, "uploadThroughput": -1}
            context.new_cdp_session(self.page).send("Network.emulateNetworkConditions", network)
        self.url = url
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console", lambda entry: self.errors.append(entry.text) if entry.type == "error" else None
        )

    def open(self, query: str = "") -> Page:
        """Open the page and wait until its header has what the server knows."""
        self.page.goto(self.url + query)
        self.page.wait_for_function("window.SabLens && SabLens.state.tab !== undefined")
        return self.page

    def open_layer(self, query: str = "") -> Page:
        """Open the page and wait until the maps of a layer are drawn."""
        page = self.open(query)
        page.wait_for_function("SabLens.explore && SabLens.explore.lastOpen > 0 && SabLens.explore.linears")
        return page

    @contextmanager
    def slow(self) -> Iterator[Callable[[str], None]]:
        """While the server seems to take its time: events wait on their way to it until the end. Gives a function that
        returns when an event with this text in its data is on its way."""
        held: list[Route] = []
        holding = True
        events = "**/gradio_api/run/**"

        def under_way(text: str) -> None:
            for _ in range(600):
                if any(text in (route.request.post_data or "") for route in held):
                    return
                self.page.wait_for_timeout(100)
            pytest.fail(f"No event with {text!r} is on its way.")

        self.page.route(events, lambda route: held.append(route) if holding else route.continue_())
        yield under_way
        holding = False
        for route in held:
            route.continue_()
        self.page.unroute(events)

    @contextmanager
    def turning(self) -> Iterator[None]:
        """While one page makes room for another: what the old one logs about its requests, cut off, is no error."""
        before = list(self.errors)
        yield
        self.errors[:] = before

    def leave(self) -> None:
        """Close the window and forget what the page stored."""
        self.page.evaluate("localStorage.clear()")
        self.page.close()


@pytest.fixture(scope="session")
def desktop(browser: Browser) -> Iterator[BrowserContext]:
    """One browser for all tests, for its cache: the scripts are large."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield context
    context.close()


@pytest.fixture
def visitor(desktop: BrowserContext, app_url: str) -> Iterator[Visitor]:
    """A person at a desktop screen who has not opened the page yet."""
    person = Visitor(desktop, app_url)
    yield person
    person.leave()


@pytest.fixture
def another_visitor(browser: Browser, app_url: str) -> Iterator[Visitor]:
    """A second person with a browser of their own."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield Visitor(context, app_url)
    context.close()


@pytest.fixture
def phone(browser: Browser, app_url: str) -> Iterator[Visitor]:
    """A person with a phone."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, has_touch=True, is_mobile=True
    )
    yield Visitor(context, app_url)
    context.close()
