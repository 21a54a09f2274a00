"""Ways to make an outlier of an image: SONA, and what it is compared to. A way is one file and one line here.

All start from the same plan, so that an image has the same OOD label, and the same stop step where the way has one,
whatever it is made by; and all end in latents, so that every outlier leaves through the same decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sona_pipeline.common.registry import Registry

if TYPE_CHECKING:
    from sona_pipeline.generation.ways.base import Way

WAYS: Registry[type[Way]] = Registry(
    {
        "sona": "sona_pipeline.generation.ways.sona:Sona",
        "global": "sona_pipeline.generation.ways.sona:Global",
        "text": "sona_pipeline.generation.ways.text:Text",
        "fakeit": "sona_pipeline.generation.ways.text:FakeIt",
        "dream": "sona_pipeline.generation.ways.dream:Dream",
        "sega": "sona_pipeline.generation.ways.sega:Sega",
        "ledits": "sona_pipeline.generation.ways.ledits:LEdits",
        "leditspp": "sona_pipeline.generation.ways.leditspp:LEditsPP",
        "diffedit": "sona_pipeline.generation.ways.diffedit:DiffEdit",
        "oir": "sona_pipeline.generation.ways.oir:OIR",
        "cutpaste": "sona_pipeline.generation.ways.cutpaste:CutPaste",
        "autoaug": "sona_pipeline.generation.ways.autoaug:AutoAug",
        "ascood": "sona_pipeline.generation.ways.ascood:ASCOOD",
    }
)
