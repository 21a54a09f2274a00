"""The UNet call of a step: what knows no prompt is computed once an image."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_pipelines import LENGTH, WIDTH, build

from sona_pipeline.pipelines.families.stable_diffusion import SONAPipeline
from sona_pipeline.pipelines.unets import before_prompts


def plain_predictions(pipe, latents, t, prompt_embeds):
    """The three predictions by three separate calls of the UNet."""
    return [pipe.unet(latents, t, encoder_hidden_states=embeds).sample for embeds in prompt_embeds]


@pytest.mark.parametrize("first_block", ["CrossAttnDownBlock2D", "DownBlock2D"])
def test_what_knows_no_prompt_is_computed_once_and_changes_nothing(first_block):
    pipe = SONAPipeline(**build())
    blocks = [first_block, "CrossAttnDownBlock2D" if first_block == "DownBlock2D" else "DownBlock2D"]
    mirrored = [name.replace("Down", "Up") for name in reversed(blocks)]
    config = pipe.unet.config | {"down_block_types": blocks, "up_block_types": mirrored}
    pipe.unet = UNet2DConditionModel.from_config(config).double().eval()
    pipe.scheduler.set_timesteps(10)
    before, after = [], []
    for module, rows in ((pipe.unet.conv_in, before), (pipe.unet.conv_out, after)):
        convolve = module._conv_forward
        module._conv_forward = lambda x, *args, convolve=convolve, rows=rows: rows.append(len(x)) or convolve(x, *args)
    latents = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    prompt_embeds = torch.randn(3, 2, LENGTH, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        found = pipe.predict_noise(latents, torch.tensor(500), {"prompt_embeds": prompt_embeds})
        assert (before.pop(), after.pop()) == (2, 6)
        expected = plain_predictions(pipe, latents, torch.tensor(500), prompt_embeds)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())


def test_threads_that_share_a_unet_do_not_disturb_each_other():
    pipe = SONAPipeline(**build())
    pipe.scheduler.set_timesteps(10)
    latents, prompt_embeds = torch.randn(3, 4, 8, 8), torch.randn(3, 3, LENGTH, WIDTH)
    t, plain = torch.tensor(500), torch.no_grad()(lambda: plain_predictions(pipe, latents, t, prompt_embeds))

    def ours():
        with torch.no_grad():
            return pipe.predict_noise(latents, t, {"prompt_embeds": prompt_embeds})

    expected = plain()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(work) for _ in range(20) for work in (ours, plain)]
    for job in jobs:
        for one, other in zip(job.result(), expected):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


WIDE = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [8, 16, 24],
}


@pytest.mark.parametrize("options", [{"fullgraph": True}, {"fullgraph": True, "dynamic": True}, {}])
def test_repeated_blocks_compile_as_a_whole_graph(options):
    pipe = SONAPipeline(**build())
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config | WIDE).eval()
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def made():
        generators = [torch.Generator().manual_seed(k) for k in range(5)]
        given = {"stop_step": [1, 2, 3, 4, 5], "num_inference_steps": 5, "output_type": "latent"}
        return pipe(images, "a cat", "a dog", generator=generators, **given).images

    expected = made()
    torch.compiler.reset()
    pipe.unet.compile_repeated_blocks(backend="eager", **options)
    torch.testing.assert_close(made(), expected, rtol=1e-4, atol=1e-4)
    hooked = before_prompts(pipe.unet)
    assert pipe.unet.conv_in in hooked and pipe.unet.down_blocks[0].resnets[0] in hooked
    assert pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1 not in hooked


def test_parts_of_a_compiled_block_get_no_hooks():
    pipe = SONAPipeline(**build())
    pipe.unet.down_blocks[0].compile(backend="eager", fullgraph=True)
    assert before_prompts(pipe.unet) == [pipe.unet.conv_in]


def test_compiled_unet_is_called_as_it_is():
    pipe = SONAPipeline(**build())
    pipe.unet.compile(backend="eager")
    assert before_prompts(pipe.unet) == []
    assert before_prompts(torch.compile(pipe.unet, backend="eager")) == []
