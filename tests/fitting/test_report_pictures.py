import base64
import io

import numpy as np
from PIL import Image

from sona_pipeline.fitting.pictures import thumbnail


def test_thumbnails_of_16_bits_keep_their_shade():
    shown = thumbnail(Image.fromarray(np.full((4, 6), 32768, np.uint16)), "a grey")
    with Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2]))) as image:
        assert (image.mode, image.size, image.getpixel((1, 1))) == ("L", (6, 4), 128)
