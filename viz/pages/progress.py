"""How far a job is, in a bar and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from viz.pages import jobs
from viz.pages.jobs import Job
from viz.pages.shared import script_tags

TEMPLATE = (
    '<div class="pg" hidden><div class="pg-head"><strong class="pg-title"></strong><span '
    'class="pg-percent"></span></div>'
    '<div class="pg-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100"><div class="pg-fill"></div></div>'
    '<div class="pg-head"><span class="pg-stage"></span><span class="pg-left"></span></div>'
    '<p class="pg-message" role="status"></p><div class="pg-facts"></div></div>'
)


def progress_card(elem_id: str) -> gr.HTML:
    """A hidden card; give it `progress_value(...)`."""
    return gr.HTML(
        value=None,
        html_template=TEMPLATE,
        js_on_load="SabLens.mountProgress({element, props, watch});",
        head=script_tags("progress.js"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def progress_value(job: Job, before: int, facts: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """What the card shows of a job; `before` jobs are ahead of it in the line."""
    running = job.state == jobs.RUNNING
    if job.state == jobs.WAITING:
        stage = f"Waiting: {before} {'job' if before == 1 else 'jobs'} before yours." if before else "Next in line."
    elif running:
        stage = job.stage
    else:
        stage = {jobs.DONE: "Finished", jobs.STOPPED: "Stopped", jobs.FAILED: "Failed"}[job.state]
        stage += f" after {duration(job.seconds)}" if job.seconds else ""
    return {
        "state": job.state,
        "title": job.label,
        "stage": stage,
        "share": job.share if running else 1.0 if job.state == jobs.DONE else None,
        "left": f"{about(job.remaining)} left" if running and job.remaining is not None else "",
        "message": " ".join(part for part in (job.message, job.note) if part),
        "facts": [list(fact) for fact in facts],
    }


def about(seconds: float) -> str:
    """A remaining time as people say it."""
    if seconds < 8:
        return "a few seconds"
    if seconds < 90:
        return f"about {max(10, round(seconds / 10) * 10)} seconds"
    if seconds < 5400:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


def duration(seconds: float) -> str:
    """A measured time: 9.4 s, 83 s, 12 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
