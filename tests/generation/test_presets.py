"""Presets: values beneath the command line and the configuration, above the defaults."""

from dataclasses import asdict, replace

import pytest
import yaml
from cyclopts import App
from pictures import write_sample

from sona_pipeline import PRESETS, GenerationSettings, load_pipeline
from sona_pipeline.cli.app import main
from sona_pipeline.cli.options import add_command
from sona_pipeline.common.settings import check_ranges, settings_of
from sona_pipeline.generation.settings import DEFAULT_PRESET, GENERATE, SCHEDULERS, ModelSettings, settings_in
from sona_pipeline.pipelines.schedules import Schedule, check_scheduler

NEEDED = ["--data", "photos", "--output", "out"]
RECORD = {
    "scheduler": "EulerDiscreteScheduler",
    "num_inference_steps": 21,
    "guidance_scale": 3.0,
    "mask_threshold": 0.1,
    "model_revision": "unknown",
    "notes": {"dtype": "torch.float16, torch.float32"},
}


def given(*arguments: str) -> dict:
    """What the command gets from a command line."""
    found, app = {}, App(result_action="return_value")

    def generate(values):
        """Command."""
        found.update(values)

    add_command(app, generate, GENERATE, settings_in)
    app(["generate", *NEEDED, *arguments], exit_on_error=False, print_error=False)
    return found


def values_of(preset: str) -> dict:
    return PRESETS[preset].method | PRESETS[preset].model


def test_the_papers_values_are_the_defaults_in_python():
    assert values_of("paper") == {
        "num_inference_steps": 50,
        "guidance_scale": 10.0,
        "mask_threshold": 0.2,
        "scheduler": "auto",
    }
    assert type(load_pipeline("tiny", "cpu").scheduler) is SCHEDULERS["ddim"]
    settings = GenerationSettings(ood_labels=("bag",))
    assert replace(settings, **PRESETS["paper"].method) == settings
    assert replace(ModelSettings(), **PRESETS["paper"].model) == ModelSettings()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_complete_and_can_be_used(name):
    settings = GenerationSettings(ood_labels=("bag",), **PRESETS[name].method)
    check_ranges(settings)
    pipe = load_pipeline("tiny", "cpu", **PRESETS[name].model)
    assert type(pipe.scheduler) is SCHEDULERS[{"paper": "ddim", "fast": "unipc"}[name]]
    check_scheduler(pipe.scheduler, Schedule(settings.num_inference_steps))
    assert values_of(name).keys() == values_of("paper").keys()


def test_default_preset_holds_where_none_is_given():
    assert given().items() >= values_of(DEFAULT_PRESET).items()


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_above_the_defaults(name):
    assert given("--preset", name).items() >= values_of(name).items()


def test_options_go_before_the_preset():
    found = given("--preset", "fast", "--steps", "7", "--scheduler", "euler")
    assert found.items() >= (values_of("fast") | {"num_inference_steps": 7, "scheduler": "euler"}).items()


def test_configuration_goes_before_the_preset_and_may_name_it(tmp_path):
    (tmp_path / "steps.yaml").write_text("steps: 7\n")
    (tmp_path / "preset.yaml").write_text("preset: fast\nsteps: 8\n")
    expected = values_of("fast")
    found = given("--preset", "fast", "--config", str(tmp_path / "steps.yaml"))
    assert found.items() >= (expected | {"num_inference_steps": 7}).items()
    assert given("--config", str(tmp_path / "preset.yaml"))["num_inference_steps"] == 8
    assert given("--config", str(tmp_path / "preset.yaml"))["scheduler"] == expected["scheduler"]
    assert given("--config", str(tmp_path / "preset.yaml"), "--preset", "paper")["scheduler"] == "auto"


def test_what_an_earlier_run_recorded_goes_before_the_preset(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(yaml.safe_dump(RECORD))
    found = given("--preset", "fast", "--config", str(path))
    wanted = {"num_inference_steps": 21, "guidance_scale": 3.0, "mask_threshold": 0.1, "scheduler": "euler"}
    assert found.items() >= (wanted | {"dtype": "float32"}).items()


def test_a_recorded_scheduler_that_has_no_name_is_the_models_own(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(yaml.safe_dump(RECORD | {"scheduler": "FlowMatchEulerDiscreteScheduler"}))
    assert given("--config", str(path))["scheduler"] == "auto"


@pytest.mark.parametrize("where", ["option", "file"])
def test_unknown_preset_is_a_sentence_with_the_names(where, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("preset: slow\n")
    with pytest.raises(SystemExit) as end:
        main(["generate", *NEEDED, *(["--preset", "slow"] if where == "option" else ["--config", "bad.yaml"])])
    assert end.value.code == 2
    said = " ".join("".join(capsys.readouterr()).split())
    assert "slow" in said and "paper" in said and "fast" in said and "--preset" in said
    assert not (tmp_path / "out").exists()


def test_help_says_what_each_preset_stands_for():
    settings = {setting.name: setting for kind in GENERATE.values() for setting in settings_of(kind)}
    steps = {name: values_of(name)["num_inference_steps"] for name in PRESETS}
    assert settings["num_inference_steps"].default_in_words == f"{steps['paper']} (paper), {steps['fast']} (fast)"
    assert {name for name, setting in settings.items() if setting.presets} == set(values_of("paper"))
    assert settings["seed"].default_in_words == "0"


def test_dry_run_says_what_the_preset_comes_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path / "photos", 4)
    (tmp_path / "labels.txt").write_text("bag\n")
    line = "--model tiny --device cpu --ood-labels labels.txt --dry-run --preset fast --steps 3 --guidance-scale 4"
    main(["generate", *NEEDED, *line.split()])
    said = " ".join(capsys.readouterr().out.split())
    share = values_of("fast")["mask_threshold"]
    assert f"3 steps of UniPCMultistepScheduler, guidance scale 4, regions of {share:g}, with the preset 'fast'" in said
    assert asdict(GenerationSettings(("bag",)))["num_inference_steps"] == 50
