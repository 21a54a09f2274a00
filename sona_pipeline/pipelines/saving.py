"""How a pipeline is saved, so that diffusers finds its class again."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

from sona_pipeline.pipelines.family import Family


class SavingMixin(Family):
    """A pipeline that is saved with its code."""

    @classmethod
    def standalone_file(cls) -> Path:
        """The file that holds the class with all that it needs besides libraries."""
        own = Path(inspect.getfile(cls))
        made = own.parents[2] / "custom_pipelines" / own.name
        return made if own.parent.name == "families" and made.exists() else own

    def save_config(self, save_directory: str, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `model_index.json`, and the pipeline's file beside it, which `trust_remote_code=True` loads.

        Called by `save_pretrained` and `push_to_hub`.
        """
        source, target = self.standalone_file(), Path(save_directory) / "pipeline.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """The contents of `model_index.json`, with the class name in the list form of custom pipelines."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = ["pipeline", type(self).__name__]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict:
        """Take the list form for the class that is being asked, which needs no remote code."""
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][1]
        return config
