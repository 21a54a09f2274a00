"""DreamOOD: prompts whose class word is replaced by a vector from outside of the class."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from sona_pipeline.common.progress import Track
from sona_pipeline.detection.edges import Edge, drawn_outside
from sona_pipeline.detection.networks import SMALL, build
from sona_pipeline.generation.ways.text import Text, drawn
from sona_pipeline.generation.words import prompts_with, word_vector

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work

EPOCHS, RATE, BATCH, TEMPERATURE = 20, 0.1, 64, 0.1
"""Of the encoder's training; the cosines over the temperature are its logits."""
EDGE = Edge(neighbours=300, size=200, picked=None, drawn=1500, kept=2, spread=0.03)
IMAGES, WIDTH = 1000, 768
"""What `EDGE` is for: images of a class, of which no more count, and numbers of a word."""


def edge_of(images: int, width: int) -> Edge:
    """The same shares of other numbers of images, and points as far away by words of another width."""
    share = images / IMAGES
    neighbours, size = (max(1, round(share * count)) for count in (EDGE.neighbours, EDGE.size))
    return replace(EDGE, neighbours=neighbours, size=size, spread=EDGE.spread * math.sqrt(WIDTH / width))


class Encoder(nn.Module):
    """From images to features like the text encoder's words, whose cosines to the class words are the logits."""

    anchors: torch.Tensor

    def __init__(self, anchors: torch.Tensor, size: int):
        super().__init__()
        network = build("resnet8" if size <= SMALL else "resnet18", len(anchors), size)
        self.body, self.projection = network.body, nn.Linear(network.head.in_features, anchors.shape[1])
        self.register_buffer("anchors", F.normalize(anchors, dim=1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit features `[B, D]` of pixels `[B, 3, H, W]` in [-1, 1]."""
        return F.normalize(self.projection(self.body(pixels)), dim=1)

    def loss(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the cosines to the class words."""
        return F.cross_entropy(self(pixels) @ self.anchors.T / TEMPERATURE, labels)


class Dream(Text):
    """DreamOOD (Du et al. 2023).

    An encoder of images is trained so that its features point where the word of their class is in the table of the text
    encoder. Around the edge of each class in that space vectors are drawn that lie outside. The text encoder reads one
    of them, as long as the class word's own vector, in its place in the prompt "a photo of a {class}", and the outlier
    is drawn from noise. The paper trains a ResNet-34 for 100 epochs; here it is a small network of up to 64 px, for 20
    epochs.
    """

    needs_unet = True
    uses_label = takes_embeddings = False
    looks_at_all = True

    def prepare(self, maker: OutlierMaker) -> dict[str, torch.Tensor]:
        """The vectors `[N, D]` of each class, by its number, once the encoder is trained."""
        classes = maker.plan.images.classes
        words = torch.stack([word_vector(self.pipe, self.settings.id_label(name)) for name in classes]).float()
        pixels, labels = self._images(maker)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            encoder = _trained(Encoder(words, pixels.shape[-1]).to(words.device), pixels, labels)
            features = _features(encoder, pixels)
            by_class = [features[labels == label][:IMAGES] for label in range(len(classes))]
            edges = [drawn_outside(own, edge_of(*own.shape)) for own in by_class]
        lengths = words.norm(dim=1, keepdim=True)
        return {str(k): (F.normalize(own, dim=1) * lengths[k]).cpu() for k, own in enumerate(edges)}

    def begin(self, maker: OutlierMaker, prepared: dict[str, torch.Tensor]) -> None:
        """Take up the vectors."""
        self.vectors = [prepared[str(label)] for label in range(len(maker.plan.images.classes))]

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """All images of a batch together."""
        picked = []
        for item, generator in zip(work.items, work.generators):
            vectors = self.vectors[maker.plan.images.labels[item.index]]
            picked.append(vectors[int(torch.randint(len(vectors), (), generator=generator))])
        embeds = prompts_with(self.pipe, self.settings.prompt, torch.stack(picked))
        return drawn(maker, {"prompt_embeds": embeds.to(self.pipe.denoiser.dtype)}, work.generators)

    def _images(self, maker: OutlierMaker) -> tuple[torch.Tensor, torch.Tensor]:
        """All readable images as uint8 pixels `[N, 3, S, S]` of up to 64 px, and their labels."""
        plan, found, labels = maker.plan, [], []
        for batch in plan.batches(BATCH):
            work = maker.read(batch)
            if work.items:
                pixels = self.pipe.preprocess_image(work.images).expand(-1, 3, -1, -1)
                side = min(SMALL, maker.size)
                small = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
                found.append((127.5 * small + 127.5).round().clamp(0, 255).to(torch.uint8))
                labels += [plan.images.labels[item.index] for item in work.items]
        if missing := set(range(len(plan.images.classes))) - set(labels):
            raise ValueError(
                f"the way 'dream' needs images of every class, and {plan.images.classes[min(missing)]!r} has none"
            )
        return torch.cat(found), torch.tensor(labels)


def _trained(encoder: Encoder, pixels: torch.Tensor, labels: torch.Tensor) -> Encoder:
    optimizer = torch.optim.SGD(encoder.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = EPOCHS * max(1, len(pixels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + EPOCHS)
    device = encoder.anchors.device
    encoder.train()
    with Track("encoder", EPOCHS) as track, torch.enable_grad():
        for _ in range(EPOCHS):
            for places in torch.randperm(len(pixels)).split(BATCH):
                if len(places) < min(BATCH, len(pixels)):
                    continue
                images = _scaled(pixels[places].to(device))
                images = images.flip(3) if torch.rand(()) < 0.5 else images
                loss = encoder.loss(images, labels[places].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            track.advance()
    return encoder.eval()


@torch.no_grad()
def _features(encoder: Encoder, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([encoder(_scaled(some.to(encoder.anchors.device))) for some in pixels.split(256)])


def _scaled(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels of 0 to 255 in [-1, 1]."""
    return pixels.float() / 127.5 - 1
