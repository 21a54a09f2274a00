import pytest

from sona_pipeline.data.strewn import is_strewn

SYSTEMS = [
    *("._x.png", ".DS_Store", ".Trashes", ".Spotlight-V100", ".AppleDouble", "__MACOSX", "Icon\r"),
    *("Thumbs.db", "thumbs.db", "ehthumbs.db", "Thumbs.db:encryptable", "Desktop.ini", "$RECYCLE.BIN"),
    *("System Volume Information", "lost+found", "Network Trash Folder", ".ipynb_checkpoints", "__pycache__"),
    *("@eaDir", "@Recycle", "#recycle", "#snapshot", "@Recently-Snapshot", ".@__thumb"),
]


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_systems_leave_is_no_data(name):
    assert is_strewn(name)


@pytest.mark.parametrize(
    "name", ["x.png", "_x.png", "x._.png", "@home", "recycle", "Thumbs", "lost", "macosx", "#1", "~"]
)
def test_other_names_are_data(name):
    assert not is_strewn(name)
