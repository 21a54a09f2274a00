"""The option tables of the guides, as the settings dataclasses have them.

python tests/option_tables.py    # writes them again into examples/guides
"""

import re
from pathlib import Path

from sona_pipeline.demo.settings import PageSettings

from sona_pipeline.cli.detectors import CALIBRATE, EVALUATE, TRAIN
from sona_pipeline.common.settings import Setting, settings_of
from sona_pipeline.detection.settings import AskSettings, ExportSettings
from sona_pipeline.fitting.settings import FIT
from sona_pipeline.generation.settings import GENERATE, InspectionSettings, MergeSettings
from sona_pipeline.hub.settings import PUSHED

GUIDES = Path(__file__).parents[1] / "examples" / "guides"
COMMANDS = {
    "fit": FIT,
    "generate": GENERATE,
    "merge": {"": MergeSettings},
    "inspect": {"": InspectionSettings},
    "train": TRAIN,
    "score": {"": AskSettings},
    "calibrate": CALIBRATE,
    "export": {"": ExportSettings},
    "evaluate": EVALUATE,
    "demo": {"": PageSettings},
    **{f"push {name}": {"": kind} for name, kind in PUSHED.items()},
}
MARKED = re.compile(r"(<!-- options: ([\w ]+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """A guide with its tables as they should be."""
    return MARKED.sub(lambda found: found[1] + table(found[2]) + found[3], text)


def table(command: str) -> str:
    """The options of a command in Markdown; no option of a command stands twice."""
    rows, seen = ["", "| option | default | |", "|---|---|---|"], set()
    for heading, kind in COMMANDS[command].items():
        if heading:
            rows.append(f"| **{heading}** | | |")
        for setting in settings_of(kind):
            if setting.name not in seen and "Mapping" not in str(setting.type):
                seen.add(setting.name)
                rows.append(row(setting))
    return "\n".join(rows) + "\n\n"


def row(setting: Setting) -> str:
    name = setting.name.upper() if setting.is_argument else setting.option
    default = "needed" if setting.is_required else _in_code(setting.default_in_words) if setting.says_default else ""
    choices = "One of " + ", ".join(f"`{name}`" for name in setting.choices) + "." if setting.choices else ""
    bounds = setting.bounds[:1].upper() + setting.bounds[1:] + "." if setting.bounds else ""
    told = " ".join(filter(None, [setting.help, choices, bounds])).replace("|", r"\|")
    return f"| `{name}` | {default} | {told} |"


def _in_code(default: str) -> str:
    """A default as code, but for the names of presets in it."""
    return ", ".join(re.sub(r"^(.+?)( \(.*\))?$", r"`\1`\2", one) for one in default.split(", ")).lower()


if __name__ == "__main__":
    for path in sorted(GUIDES.glob("*.md")):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
