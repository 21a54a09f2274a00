import pytest

from sona_pipeline.data.strewn import is_strewn

SYSTEMS = """._x.png .DS_Store .Trashes .Spotlight-V100 .fseventsd .AppleDouble .ipynb_checkpoints .@__thumb .git
__MACOSX Thumbs.db thumbs.db ehthumbs.db Thumbs.db:encryptable desktop.ini Desktop.ini $RECYCLE.BIN lost+found
@eaDir @Recycle #recycle #snapshot @Recently-Snapshot __pycache__""".split()


@pytest.mark.parametrize("name", [*SYSTEMS, "System Volume Information", "Network Trash Folder", "Icon\r"])
def test_what_systems_leave_is_no_data(name):
    assert is_strewn(name)


@pytest.mark.parametrize(
    "name", ["x.png", "_x.png", "x._.png", "@home", "recycle", "Thumbs", "lost", "macosx", "#1", "~"]
)
def test_other_names_are_data(name):
    assert not is_strewn(name)
