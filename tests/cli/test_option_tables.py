"""The option tables of the guides are what the code has."""

from option_tables import COMMANDS, GUIDES, MARKED, with_tables

from sona_pipeline.cli.app import app


def test_guides_have_the_options_of_the_code():
    for path in GUIDES.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert with_tables(text) == text, f"{path.name} is not up to date: run `python tests/option_tables.py`"


def test_every_table_has_the_options_that_the_command_line_takes():
    for guide in GUIDES.glob("*.md"):
        for found in MARKED.finditer(guide.read_text(encoding="utf-8")):
            assert found[2] in COMMANDS
            command = app
            for word in found[2].split():
                command = command[word]
            taken = {
                name for one in command.assemble_argument_collection() for name in one.names if "--no-" not in name
            }
            missing = {name for name in taken - {"--config"} if f"`{name}`" not in found[0] and name.startswith("--")}
            assert missing <= {"--num-inference-steps"}
