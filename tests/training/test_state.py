import pytest
import torch
from safetensors import SafetensorError, safe_open

from sona_pipeline.training.state import load_state, save_state


def test_nested_state_comes_back(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    shared = torch.arange(6.0).view(2, 3).T
    state = {
        "optimizer": optimizer.state_dict(),
        "numbers": [1, 2.5, None, True, "text"],
        3: {4: shared, "again": shared},
    }
    save_state(tmp_path / "state.safetensors", state)
    back = load_state(tmp_path / "state.safetensors")
    assert back["numbers"] == state["numbers"]
    assert torch.equal(back[3][4], shared) and torch.equal(back[3]["again"], shared)

    other = torch.optim.Adam(torch.nn.Linear(3, 2).parameters())
    other.load_state_dict(back["optimizer"])
    for mine, theirs in zip(optimizer.state_dict()["state"].values(), other.state_dict()["state"].values()):
        assert all(torch.equal(mine[name], theirs[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        assert len(list(file.keys())) == 8


def test_failing_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.ones(2)})

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("sona_pipeline.training.state.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_state(path, {"a": torch.zeros(2)})
    assert load_state(path)["a"].tolist() == [1, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]


def test_full_disk_is_an_error_of_the_disk_and_a_damaged_file_says_so(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.ones(2)})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"state.safetensors is damaged: remove it to train from the beginning"):
        load_state(path)

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sona_pipeline.training.state.save_file", full)
    with pytest.raises(OSError, match=r"the disk of .* is full"):
        save_state(path, {"a": torch.zeros(2)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]
