"""Commands about publishing: `sona push ...`, `sona upstream`."""

from __future__ import annotations

from cyclopts import App
from rich.markup import escape

from sona_pipeline.cli.options import Command, add_command
from sona_pipeline.common.configuration import Given
from sona_pipeline.common.endings import stopped_explained
from sona_pipeline.common.messages import say
from sona_pipeline.hub import settings as hub

PUSH = """Publish a pipeline, an outlier set, a detector or the demo on the Hugging Face Hub, with a card.

Needs a token: `hf auth login`, or HF_TOKEN. With `--dry-run` nothing is pushed, and no token needed.
"""


def add_to(app: App) -> None:
    """Add the commands to the command line."""
    push = App(name="push", help=PUSH)
    for name, kind in hub.PUSHED.items():
        add_command(push, push_of(name, kind), {"Options": kind})
    app.command(push)
    add_command(app, upstream, {"Options": hub.UpstreamSettings})


def push_of(name: str, kind: type[hub.PushSettings]) -> Command:
    """The command that pushes what settings of one kind are about."""

    def command(given: Given) -> None:
        settings = given.of(kind)
        from sona_pipeline.hub.publish import publish

        with stopped_explained():
            done = publish(settings)
        say(escape(done))

    command.__name__, command.__doc__ = name, kind.__doc__
    return command


def upstream(given: Given) -> None:
    """What diffusers' community pipelines need: sona.py, and row and section of their README.

    They are written if `custom_pipeline="sona"` loads from them, which is tried offline in a process of its own.

    Example: `sona upstream --output upstream/`
    """
    output = given.of(hub.UpstreamSettings).output
    from sona_pipeline.hub.upstream import write_upstream

    with stopped_explained():
        write_upstream(output)
    say(f"custom_pipeline='sona' loads and makes an outlier: {escape(str(output))}")
