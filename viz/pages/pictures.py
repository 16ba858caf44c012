"""Pictures on their way to the browser and back."""

from __future__ import annotations

import base64
import io

from PIL import Image

from sab.errors import SabError

THUMBNAIL = 112  # pixels
LARGEST_SIDE = 1024  # pixels of a picture that is kept; assets/js/sketch.js scales to the same


def same_picture(one: Image.Image | None, other: Image.Image | None) -> bool:
    """Whether two pictures are pixel for pixel the same (or both missing)."""
    if one is None or other is None:
        return one is other
    return one.size == other.size and one.tobytes() == other.tobytes()


def thumbnail(picture: Image.Image) -> str:
    """A small PNG data URL."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_url(small)


def data_url(picture: Image.Image) -> str:
    """A picture as a PNG data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_from_url(sent: object) -> Image.Image | None:
    """The picture that the page's canvas sent; None when it was blank. Raises SabError for anything else."""
    from sab.chat import open_picture

    if sent is None or sent == "":
        return None
    head, _, body = sent.partition(",") if isinstance(sent, str) else ("", "", "")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise SabError("The picture did not arrive whole; put it on the canvas again.")
    if len(body) > 12_000_000:
        raise SabError("The picture is too large; use a smaller one.")
    try:
        content = base64.b64decode(body, validate=True)
    except ValueError as error:
        raise SabError("The picture did not arrive whole; put it on the canvas again.") from error
    picture = open_picture(content)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))  # the canvas sends none larger; what is kept has to be bounded
    return picture
