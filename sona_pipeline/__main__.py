"""The command `sona`, which is `python -m sona_pipeline`, too."""

import signal


def main() -> None:
    """Run the command line; Ctrl-C ends it in silence while it is still being imported."""
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sona_pipeline.cli.app import main as run

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
