"""Explore on a layer of the size that a model of 7 billion parameters has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Visitor
from viz import bench

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]
SHAPE = (4096, 11008)


@pytest.fixture
def large(browser: Browser, tmp_path: Path) -> Iterator[Visitor]:
    """A person before the page of a synthetic model with one such layer."""
    from viz.pages import shell

    store = bench.synthetic_store({bench.LARGE: SHAPE}, tmp_path)
    blocks = shell.page(store)
    blocks.queue(api_open=False)
    _, url, _ = blocks.launch(server_name="127.0.0.1", prevent_thread_lock=True, **shell.launch_options())
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    person = Visitor(context, url)
    person.page.set_default_timeout(600_000)
    yield person
    context.close()
    blocks.close(verbose=False)


def test_a_large_layer_is_pooled_dragged_and_zoomed_to_single_weights(large: Visitor) -> None:
    page = large.open_layer(f"?run=synthetic&kind=input&linear={bench.LARGE}")
    page.wait_for_function("document.querySelector('.sab-pool').textContent.includes('pooled ×')")
    page.wait_for_function("document.querySelector('.sab-exactness').textContent === 'exact'")
    off = page.evaluate(
        """async () => {
          const {explore} = SabLens;
          let worst = 0;
          for (const [p, q, s] of [[0.05, 0.5, 0.005], [0.01, 0.75, 0.1], [0.1, 0.25, 0.001]]) {
            const thresholds = {salient_top_p: p, diff_quantile: q, sparsity_thr: s};
            const exact = await explore.ask('exact', thresholds), {counts} = explore.bins.classes(thresholds);
            const total = counts.reduce((sum, count) => sum + count, 0);
            worst = Math.max(worst, ...counts.map((count, code) => Math.abs(count - exact.counts[code]) / total));
          }
          return worst;
        }"""
    )
    assert off < 0.005
    page.locator(".sab-map[data-view=partition] .sab-map-stage").dblclick(position={"x": 150, "y": 60})
    page.wait_for_function("document.querySelector('.sab-pool').textContent.includes('single weights')")
    page.wait_for_function(
        "SabLens.state.pinned !== '' && document.querySelector('.sab-weight').textContent.includes('W')"
    )
    assert large.errors == []
