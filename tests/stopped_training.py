"""Trainings that are stopped between two checkpoints."""

from sona_pipeline.training.loop import Training


def stop_after(epoch: int, monkeypatch) -> None:
    """Make trainings end in the middle of the epoch after `epoch`."""
    train_epoch = Training._train_epoch

    def stopped(self, track):
        if self.epoch < epoch:
            return train_epoch(self, track)
        self._losses(next(iter(self.loader)), 0.0)["loss"].backward()
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "_train_epoch", stopped)
