"""`python -m sona_pipeline` is `sona`."""

from sona_pipeline.cli.app import main

if __name__ == "__main__":
    main()
