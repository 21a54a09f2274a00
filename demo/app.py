"""The page as a Space runs it: `python app.py`, from this folder or from the root of a Space."""

from sona_pipeline.demo.page import serve

if __name__ == "__main__":
    serve()
