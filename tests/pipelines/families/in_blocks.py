"""What every family is held to, too: its blocks of modular diffusers make the outliers that its pipeline makes."""

import torch

from sona_pipeline import SONABlocks


def modular_of(pipe):
    """A modular pipeline of the components and settings of a pipeline."""
    made = SONABlocks(type(pipe)).init_pipeline()
    settings = {name: pipe.config[name] for name in made._config_specs}
    made.update_components(**pipe.components, **settings)
    made.set_progress_bar_config(disable=True)
    return made


def assert_same_in_blocks(pipe):
    """Hold two images with prompts of their own to that, the masks of the last step included."""
    pipe.set_progress_bar_config(disable=True)
    side = 8 * pipe.latent_side
    images = torch.rand(2, pipe.image_channels, side, side, generator=torch.Generator().manual_seed(3))
    masks = []

    def call(pipe, **options):
        return pipe(
            image=images,
            id_prompt=["a cat", "a barn by the sea"],
            ood_prompt="a dog",
            stop_step=2,
            num_inference_steps=4,
            output_type="latent",
            generator=[torch.Generator().manual_seed(k) for k in range(2)],
            **options,
        )

    def keep(pipe, step, t, tensors):
        masks.append(tensors)
        return {}

    names = ["id_semantic_mask", "id_nuisance_mask", "ood_semantic_mask"]
    made = call(pipe, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=names)
    state = call(modular_of(pipe))
    torch.testing.assert_close(state.images, made.images, atol=1e-6, rtol=0)
    assert all(torch.equal(state.get(name), masks[-1][name]) for name in names)
