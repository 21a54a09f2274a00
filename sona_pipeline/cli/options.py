"""Command-line options from the dataclasses that settings are declared in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Group, Parameter

from sona_pipeline.common.caches import use_writable_caches
from sona_pipeline.common.configuration import Given, read_configuration, with_preset
from sona_pipeline.common.places import check_apart
from sona_pipeline.common.settings import Setting, settings_of

Command = Callable[[Given], None]
CONFIG = (
    "YAML file with values for these options, by their names. What an earlier run wrote down (settings.json,"
    " training.json) is such a file, too. Options on the command line go before it."
)


def add_command(
    app: App, function: Command, panels: Mapping[str, type], settings_in: Callable[[dict], dict] | None = None
) -> None:
    """Make a function a command with an option for every setting, and `--config`; it takes what was given.

    Args:
        app: that gets the command.
        function: what it does; its name and docstring are the command's.
        panels: dataclasses of settings, by the headings that their options have. Of two of one name, the first counts.
        settings_in: finds the settings in what an earlier run recorded, if runs leave a record.
    """
    options: dict[str, Setting] = {}
    parameters: list[inspect.Parameter] = []
    for number, (heading, kind) in enumerate(panels.items()):
        group = Group(heading, sort_key=number)
        for setting in settings_of(kind):
            if options.setdefault(setting.name, setting) is setting and not _is_mapping(setting):
                parameters.append(_parameter(setting, group))
        if not number:
            parameters.append(_keyword("config", Path, None, Parameter(help=CONFIG, group=group, show_default=False)))

    def run(*arguments: Any, **values: Any) -> None:
        names = [setting.name for setting in options.values() if setting.is_argument]
        file = values.pop("config", None)
        use_writable_caches()
        given = read_configuration(file, options, settings_in) if file else {}
        given |= dict(zip(names, arguments)) | values
        if given.get("output") and (images := given.get("data") or given.get("id")):
            check_apart(given["output"], images)
        function(with_preset(given, options))

    run.__name__ = function.__name__
    parameters.sort(key=lambda parameter: parameter.kind)  # arguments first
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # what cyclopts reads
    about, word, examples = inspect.cleandoc(function.__doc__ or "").partition("Example")
    app.command(run, help=about, help_epilogue=f"{word}{examples}")


def _parameter(setting: Setting, group: Group) -> inspect.Parameter:
    notes = [setting.help, f"Has to be {setting.bounds}." if setting.bounds else ""]
    notes += ["Required."] if setting.is_required and not setting.is_argument else []
    parameter = Parameter(
        name=[] if setting.is_argument else dict.fromkeys([setting.option, f"--{setting.name.replace('_', '-')}"]),
        group=group,
        help=" ".join(filter(None, notes)),
        choices=setting.choices or None,
        allow_repeating=True,  # the last one counts
        negative=None if setting.type is bool and setting.default is not False else (),
        show_default=setting.says_default and (lambda _: setting.default_in_words),
    )
    kind: Any = str if setting.type == str | tuple[str, ...] else setting.type
    if setting.is_argument:
        return inspect.Parameter(setting.name, inspect.Parameter.POSITIONAL_ONLY, annotation=Annotated[kind, parameter])
    return _keyword(setting.name, kind, None if setting.default in (MISSING, ()) else setting.default, parameter)


def _keyword(name: str, kind: Any, default: Any, parameter: Parameter) -> inspect.Parameter:
    hint: Any = kind | None if default is None else kind
    it = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, it, default=default, annotation=Annotated[hint, parameter])


def _is_mapping(setting: Setting) -> bool:
    return getattr(setting.type, "__origin__", None) is Mapping
