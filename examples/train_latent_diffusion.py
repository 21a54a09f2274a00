"""Train a small text-conditional latent diffusion model on any labelled image folder or parquet file.

For images that Stable Diffusion does not know, and for machines without a GPU. All parts are trained from nothing: a
tokenizer on the prompts, an autoencoder (stage `vae`), a UNet with a CLIP text encoder (stage `unet`). The result is a
Stable Diffusion checkpoint in miniature, in fp16 safetensors, that `StableDiffusionPipeline` and `SONAPipeline` load.

    python examples/train_latent_diffusion.py --data images/ --output model/
    accelerate launch examples/train_latent_diffusion.py --data images/ --output model/      # several processes
    python examples/train_latent_diffusion.py --data photos/ --output model/ --autoencoder patches

Killed and started again with the same arguments, it goes on from the last checkpoint. `--output` receives the model,
written anew at each checkpoint of the UNet with averaged weights, `checkpoints/` the state to resume from, `samples/`
sheets of reconstructions and of generated images.

An autoencoder for small colour images takes hours on two cores. With `--autoencoder patches` there is none to train:
latents are the principal components of 4 x 4 patches. Their code, `patch_autoencoder.py`, is saved with the model, and
is loaded by `sona generate --trust-remote-code` or `from_pretrained(..., trust_remote_code=True)`.

`--prediction-type v_prediction` (Salimans and Ho 2022), `--snr-gamma 5` (Hang et al. 2023), `--flips` and `--bfloat16`
can be tried; what each gives has not been measured here yet.

The embedded model of the package was made by (two cores, about two hours):

    python examples/train_latent_diffusion.py --data fashion-mnist/diffusion.parquet --output tiny
"""

import copy
import inspect
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveInt
from cyclopts.validators import Number
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel, compute_snr
from patch_autoencoder import PatchAutoencoder
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import save_image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sona_pipeline import ImageSet, fit, is_grey, open_images

TEMPLATES = ["a photo of a {}", "a photo of the {}", "an image of a {}", "{}"]
LEARNED_CHANNELS = 4
"""Latent channels of the learned autoencoder."""


PredictionType = Literal["epsilon", "v_prediction"]
Flag = Annotated[bool, cyclopts.Parameter(negative=(), show_default=False)]


class Images(torch.utils.data.Dataset):
    """An `ImageSet` as tensors `[C, H, W]` in [-1, 1] with their indices."""

    def __init__(self, images: ImageSet, resolution: int, mode: str):
        self.images, self.resolution, self.mode = images, resolution, mode

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = pil_to_tensor(fit(self.images.image(index), self.resolution, self.mode))
        return pixels.float().div(127.5).sub(1), index


def train_tokenizer(prompts: list[str], vocabulary_size: int, length: int) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer with merges learned on `prompts`; its 512 byte tokens spell any other text."""
    bos, eos = "<|startoftext|>", "<|endoftext|>"
    blank = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    learner.train_from_iterator(
        prompts, trainers.BpeTrainer(vocab_size=vocabulary_size, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [c + "</w>" for c in alphabet] + ["".join(m) for m in merges] + [bos, eos]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def build_autoencoder(channels: int, resolution: int, width: int) -> AutoencoderKL:
    """An untrained VAE."""
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=LEARNED_CHANNELS,
        block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        sample_size=resolution,
        mid_block_add_attention=False,
    )


def build_models(tokenizer: CLIPTokenizer, latent_channels: int, latent_size: int, unet_width: int):
    """Untrained UNet (two levels, cross-attention on the lower) and text encoder (two layers)."""
    text_width = 64
    unet = UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(unet_width, unet_width * 4 // 3),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text_width,
            projection_dim=text_width,
            intermediate_size=4 * text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return unet.to(memory_format=torch.channels_last), text_encoder


def multiply_in_bfloat16(unet: UNet2DConditionModel) -> None:
    """Make a UNet fast under autocast to bfloat16 on CPUs, where norms and fused attention are slow in bfloat16."""
    unet.set_attn_processor(AttnProcessor())
    for module in unet.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def make_scheduler(prediction_type: PredictionType = "epsilon") -> DDIMScheduler:
    """The noise schedule of Stable Diffusion, sampled by DDIM."""
    return DDIMScheduler(
        prediction_type=prediction_type,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Stage:
    """One training loop: seeded batches, warm-up and cosine decay, EMA, checkpoints in safetensors, progress bar."""

    def __init__(
        self,
        name: str,
        accelerator: Accelerator,
        model: torch.nn.Module,
        steps: int,
        lr: float,
        seed: int,
        output: Path,
    ):
        self.name, self.accelerator, self.steps, self.lr, self.seed = name, accelerator, steps, lr, seed
        self.plain = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.model, self.optimizer = accelerator.prepare(model, self.optimizer)
        self.ema = EMAModel(model.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75)
        self.ema.to(accelerator.device)
        self.checkpoint = output / "checkpoints" / f"{name}.safetensors"
        self.step, self.early = 0, 0

    def resume(self) -> None:
        """Take up the state of the last checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        state = load_file(self.checkpoint)
        self.step = int(state["step"])
        parameters = list(self.plain.parameters())
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        for i, (parameter, shadow) in enumerate(zip(parameters, self.ema.shadow_params)):
            parameter.data.copy_(state[f"model.{i}"])
            shadow.copy_(state[f"ema.{i}"])
            if self.step and f"exp_avg.{i}" in state:
                moments = {k: state[f"{k}.{i}"].to(parameter.device) for k in ("exp_avg", "exp_avg_sq")}
                inner.state[parameter] = moments | {"step": state[f"step.{i}"].clone()}  # which stays on the CPU
        self.ema.optimization_step = self.step
        self.accelerator.print(f"{self.name}: resumed at step {self.step} of {self.steps}")

    def save(self) -> None:
        """Write the checkpoint: a temporary file, then a rename."""
        if not self.accelerator.is_main_process:
            return
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        state = {"step": torch.tensor(self.step)}
        for i, (parameter, shadow) in enumerate(zip(self.plain.parameters(), self.ema.shadow_params)):
            state[f"model.{i}"], state[f"ema.{i}"] = parameter.detach().contiguous(), shadow.contiguous()
            state |= {f"{k}.{i}": v.contiguous() for k, v in inner.state.get(parameter, {}).items()}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        save_file(state, partial)
        partial.rename(self.checkpoint)

    def generator(self, step: int) -> torch.Generator:
        """Random numbers of one step and process, so that a resumed run draws what an undisturbed one draws."""
        place = (self.seed * 1_000_003 + step) * self.accelerator.num_processes + self.accelerator.process_index
        return torch.Generator().manual_seed(place)

    def run(self, loss_of, every: int, show) -> None:
        """Train to the last step; `loss_of(generator)` gives the loss of a batch, `show(step)` draws a sheet."""
        columns = [
            TextColumn(self.name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        ]
        average = None
        with Progress(*columns, disable=not self.accelerator.is_main_process) as progress:
            task = progress.add_task(self.name, total=self.steps, completed=self.step, loss="")
            while self.step < self.steps:
                warm, done = min(1.0, (self.step + 1) / 500), self.step / self.steps
                for group in self.optimizer.param_groups:
                    group["lr"] = self.lr * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
                loss = loss_of(self.generator(self.step))
                self.accelerator.backward(loss)
                self.accelerator.clip_grad_norm_(self.plain.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.ema.step(self.plain.parameters())
                self.step += 1
                average = loss.item() if average is None else 0.99 * average + 0.01 * loss.item()
                progress.update(task, completed=self.step, loss=f"loss {average:.4f}")
                if self.step % every == 0 or self.step in (self.early, self.steps):
                    self.save()
                    with_ema(self, lambda: show(self.step))
                    if not progress.console.is_terminal:
                        self.accelerator.print(f"{self.name}: step {self.step} of {self.steps}, loss {average:.4f}")
        self.ema.copy_to(self.plain.parameters())


def with_ema(stage: Stage, action) -> None:
    """Run `action` with the averaged weights in place (main process only)."""
    if stage.accelerator.is_main_process:
        stage.ema.store(stage.plain.parameters())
        stage.ema.copy_to(stage.plain.parameters())
        with torch.no_grad():
            action()
        stage.ema.restore(stage.plain.parameters())


class Autoencoding(torch.nn.Module):
    """Loss of the autoencoder: absolute and squared error, and a light pull of the latents to a unit Gaussian."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        posterior = self.vae.encode(pixels).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + 1e-5 * posterior.kl().mean()


class Denoising(torch.nn.Module):
    """Loss of UNet and text encoder: noise or velocity, from noisy latents, time step and prompt.

    Args:
        unet: is trained.
        text_encoder: is trained.
        scheduler: its `prediction_type` says what is predicted.
        snr_gamma: bound of the signal-to-noise ratio that weights the error of the clean latents (min-SNR weighting);
            with 0, errors of the prediction itself count alike.
    """

    def __init__(
        self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDIMScheduler, snr_gamma: float = 0
    ):
        super().__init__()
        self.unet, self.text_encoder, self.scheduler, self.snr_gamma = unet, text_encoder, scheduler, snr_gamma

    def forward(self, clean, noise, timesteps, prompt_ids) -> torch.Tensor:
        distinct, which = torch.unique(prompt_ids, dim=0, return_inverse=True)
        prompts = self.text_encoder(distinct)[0][which]
        is_velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(clean, noise, timesteps) if is_velocity else noise
        predicted = self.unet(self.scheduler.add_noise(clean, noise, timesteps), timesteps, prompts).sample.float()
        if not self.snr_gamma:
            return F.mse_loss(predicted, target)
        ratio = compute_snr(self.scheduler, timesteps)
        weights = ratio.clamp(max=self.snr_gamma) / (ratio + 1 if is_velocity else ratio)
        return ((predicted - target).square().flatten(1).mean(dim=1) * weights).mean()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, loader, device, flip: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent mean and standard deviation of every image, or of its mirror image, in half precision on the CPU."""
    rows = []
    for pixels, _ in loader:
        posterior = vae.encode((pixels.flip(-1) if flip else pixels).to(device)).latent_dist
        rows.append(torch.stack([posterior.mean, posterior.std], dim=1).half().cpu())
    latents = torch.cat(rows)
    return latents[:, 0], latents[:, 1]


def draw_batch(images: Images, size: int, generator: torch.Generator) -> torch.Tensor:
    """A random batch of images `[B, C, H, W]`."""
    chosen = torch.randint(len(images), (size,), generator=generator).tolist()
    return torch.stack([images[i][0] for i in chosen])


def train_vae(stage: Stage, vae: AutoencoderKL, images: Images, batch_size: int, every: int, samples: Path) -> None:
    """Stage one, up to and including the latents' scaling factor."""
    device = stage.accelerator.device
    fixed = draw_batch(images, 16, stage.generator(10**9)).to(device)

    def loss_of(generator):
        pixels = draw_batch(images, batch_size, generator).to(device)
        shape = (batch_size, vae.config.latent_channels, pixels.shape[-2] // 4, pixels.shape[-1] // 4)
        return stage.model(pixels, torch.randn(shape, generator=generator).to(device))

    def show(step):
        decoded = vae.decode(vae.encode(fixed).latent_dist.mode()).sample.clamp(-1, 1)
        save_image(torch.cat([fixed, decoded]) / 2 + 0.5, samples / f"vae-{step:06d}.png", nrow=16)
        stage.accelerator.print(f"vae: mean absolute error {F.l1_loss(decoded, fixed) / 2:.4f} on [0, 1]")

    stage.run(loss_of, every, show)


def train_unet(
    stage, pipe: StableDiffusionPipeline, latents, labels, prompt_ids, names, batch_size, every, output
) -> None:
    """Stage two: `latents` are (mean, standard deviation), `prompt_ids` is `[classes + 1, templates, length]`.

    At each checkpoint a sheet and the model, with averaged weights, are written to `output`.
    """
    device, scheduler, scale = stage.accelerator.device, pipe.scheduler, pipe.vae.config.scaling_factor
    mean, deviation = latents

    def loss_of(generator):
        rows = torch.randint(len(mean), (batch_size,), generator=generator)
        clean = mean[rows].float() + deviation[rows].float() * torch.randn(mean[rows].shape, generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        empty = torch.rand(batch_size, generator=generator) < 0.1
        classes = torch.where(empty, len(prompt_ids) - 1, labels[rows])
        ids = prompt_ids[classes, torch.randint(prompt_ids.shape[1], (batch_size,), generator=generator)]
        return stage.model((clean * scale).to(device), noise.to(device), timesteps.to(device), ids.to(device))

    def show(step):
        prompts = [TEMPLATES[0].format(name) for name in names[:12] for _ in range(8)]
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn = pipe(prompts, num_inference_steps=25, guidance_scale=3.0, generator=generator, output_type="pt").images
        save_image(drawn, output / "samples" / f"unet-{step:06d}.png", nrow=8)
        save_model(copy.deepcopy(pipe), output)
        if step == stage.early:
            (output / "early").mkdir(exist_ok=True)
            save_model(copy.deepcopy(pipe), output / "early")

    stage.run(loss_of, every, show)


def fit_patches(vae: PatchAutoencoder, loader, whitening: float, samples: Path) -> float:
    """Stage one without training: principal components of all images; the mean absolute error on [0, 1]."""
    images = torch.cat([pixels for pixels, _ in loader])
    vae.fit(images, whitening)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    save_image(torch.cat([images[:16], decoded[:16]]) / 2 + 0.5, samples / "vae-fitted.png", nrow=16)
    return (F.l1_loss(decoded, images) / 2).item()


def save_model(pipe: StableDiffusionPipeline, output: Path) -> None:
    """Write the checkpoint in fp16, which turns `pipe` to fp16, beside its place and move it there.

    transformers loads a model in the precision its config names, diffusers in float32: the config is made to say that.
    """
    with tempfile.TemporaryDirectory(dir=output) as temporary:
        pipe.to(dtype=torch.float16).save_pretrained(temporary)
        if isinstance(pipe.vae, PatchAutoencoder):
            shutil.copy(inspect.getfile(PatchAutoencoder), Path(temporary) / "vae")
        config = Path(temporary) / "text_encoder" / "config.json"
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
        for part in Path(temporary).iterdir():
            target = output / part.name
            if target.is_dir():
                shutil.rmtree(target)
            part.rename(target)


def open_labelled(data: Path, classes: str) -> ImageSet:
    """The images of the classes that are named, or of all; ends the program if they have none."""
    images = open_images(data)
    if classes:
        images = images.with_classes([name.strip() for name in classes.split(",")])
    if not images.labels:
        print(f"{data} has no classes: put the images into one sub-folder a class", file=sys.stderr)
        sys.exit(2)
    return images


def scaled_latents(vae, loader, device, flips: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent mean and deviation of every image, then of mirror images; sets the scaling factor by their spread."""
    sides = [encode_all(vae, loader, device, flip) for flip in ((False, True) if flips else (False,))]
    mean, deviation = (torch.cat(parts) for parts in zip(*sides))
    spread = (mean.float().var() + deviation.float().square().mean()).sqrt().item()
    vae.register_to_config(scaling_factor=1 / spread)
    return mean, deviation


def token_ids(tokenizer: CLIPTokenizer, prompts: list[list[str]]) -> torch.Tensor:
    """Tokens `[classes, templates, length]` of the prompts."""
    options = {"padding": "max_length", "max_length": 32, "truncation": True, "return_tensors": "pt"}
    return torch.stack([tokenizer(some, **options).input_ids for some in prompts])


def main(
    *,
    data: Path,
    output: Path,
    classes: str = "",
    autoencoder: Literal["learned", "patches"] = "learned",
    components: PositiveInt = 12,
    whitening: Annotated[float, cyclopts.Parameter(validator=Number(gte=0, lte=1))] = 1,
    resolution: Annotated[int, cyclopts.Parameter(validator=Number(modulo=8))] = 32,
    vae_steps: int = 4000,
    unet_steps: int = 12000,
    batch_size: int = 64,
    vae_width: Annotated[int, cyclopts.Parameter(validator=Number(modulo=8))] = 16,
    unet_width: Annotated[int, cyclopts.Parameter(validator=Number(modulo=96))] = 96,
    learning_rate: float = 1e-3,
    flips: Flag = False,
    prediction_type: PredictionType = "epsilon",
    snr_gamma: NonNegativeFloat = 0,
    bfloat16: Flag = False,
    sample_every: int = 1000,
    early_steps: NonNegativeInt = 0,
    seed: int = 0,
) -> None:
    """Train tokenizer, autoencoder, UNet and text encoder on the images and labels of `--data`; see the file's head.

    Args:
        data: Image folder with class sub-folders, or a parquet file.
        output: Folder for the model, its checkpoints and sample sheets.
        classes: Only these classes, comma-separated (all by default).
        autoencoder: Train one, or take principal components of patches.
        components: Principal components of a patch that are kept, at least 1.
        whitening: Scale of components, from 0 for that of the pixels to 1 for unit variance.
        resolution: Side of the images in pixels, a multiple of 8.
        vae_steps: Training steps of the autoencoder.
        unet_steps: Training steps of UNet and text encoder.
        batch_size: Images a step and process.
        vae_width: Channels of the autoencoder's first level, a multiple of 8.
        unet_width: Channels of the UNet's first level, a multiple of 96.
        learning_rate: Highest learning rate of the autoencoder; the UNet's is half of it.
        flips: Train on mirror images as well.
        prediction_type: What the UNet predicts: the noise, or the velocity.
        snr_gamma: Gamma of min-SNR weighting of the UNet's loss, 5 as a rule; 0 for none.
        bfloat16: Multiply in bfloat16 in training; weights and sums stay in float32.
        sample_every: Steps between checkpoints and sample sheets.
        early_steps: Also keep the model of that step of the UNet, in OUTPUT/early: its images look like the data and
            are flawed, for `sona generate --way fakeit`. 0 for none.
        seed: Seed of weights and batches.
    """
    images = open_labelled(data, classes)
    accelerator = Accelerator(mixed_precision="bf16" if bfloat16 else None)
    torch.manual_seed(seed)
    (samples := output / "samples").mkdir(parents=True, exist_ok=True)
    channels = 1 if is_grey(images) else 3
    pixels = Images(images, resolution, "L" if channels == 1 else "RGB")
    names = list(images.classes)
    accelerator.print(f"{len(images)} images of {len(names)} classes, {channels} channel(s), {resolution} px")

    prompts = [[template.format(name) for template in TEMPLATES] for name in names] + [[""] * len(TEMPLATES)]
    tokenizer = train_tokenizer([text for some in prompts for text in some], vocabulary_size=2048, length=32)
    loader = torch.utils.data.DataLoader(pixels, batch_size=256)
    if autoencoder == "patches":
        vae = PatchAutoencoder(channels, components, sample_size=resolution)
        error = fit_patches(vae, loader, whitening, samples)
        accelerator.print(f"patches: mean absolute error {error:.4f} on [0, 1]")
    else:
        vae = build_autoencoder(channels, resolution, vae_width).to(memory_format=torch.channels_last)
        stage = Stage("vae", accelerator, Autoencoding(vae), vae_steps, learning_rate, seed, output)
        stage.resume()
        train_vae(stage, vae, pixels, batch_size, sample_every, samples)
    latents = scaled_latents(vae.to(accelerator.device).requires_grad_(False), loader, accelerator.device, flips)

    unet, text_encoder = build_models(tokenizer, vae.config.latent_channels, resolution // 4, unet_width)
    if bfloat16:
        multiply_in_bfloat16(unet)
    parts = vae, text_encoder, tokenizer, unet, make_scheduler(prediction_type), None, None
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    denoising = Denoising(unet, text_encoder, pipe.scheduler, snr_gamma)
    stage = Stage("unet", accelerator, denoising, unet_steps, learning_rate / 2, seed + 1, output)
    stage.early = early_steps
    stage.resume()
    labels = torch.tensor(images.labels).repeat(len(latents[0]) // len(images))
    train_unet(stage, pipe, latents, labels, token_ids(tokenizer, prompts), names, batch_size, sample_every, output)
    if accelerator.is_main_process:
        save_model(pipe, output)
        accelerator.print(f"saved to {output}")


if __name__ == "__main__":
    cyclopts.App(default_command=main, version_flags=())()
