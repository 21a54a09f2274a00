from .common.assets import (
    EMBEDDED_MODELS as EMBEDDED_MODELS,
    TINY_DETECTOR as TINY_DETECTOR,
    TINY_MODEL as TINY_MODEL,
)
from .common.figures import save_figure as save_figure
from .common.files import (
    only_run as only_run,
    settle_settings as settle_settings,
    write_text as write_text,
)
from .common.progress import Track as Track
from .data import sample as sample
from .data.class_names import (
    Names as Names,
    imagenet_labels as imagenet_labels,
    spoken as spoken,
)
from .data.codecs import KeptForm as KeptForm
from .data.image_set import (
    ImageSet as ImageSet,
    hold_out as hold_out,
    is_grey as is_grey,
)
from .data.images import open_images as open_images
from .data.imaging import (
    decoded as decoded,
    fit as fit,
)
from .data.outlier_set import (
    OutlierPairs as OutlierPairs,
    open_outlier_set as open_outlier_set,
    open_outlier_sets as open_outlier_sets,
    read_rows as read_rows,
)
from .data.outlier_writer import OutlierWriter as OutlierWriter
from .detection.calibration import calibrate_detector as calibrate_detector
from .detection.classifiers import (
    as_detector as as_detector,
    load_classifier as load_classifier,
)
from .detection.detector import (
    Detection as Detection,
    Detector as Detector,
    load_detector as load_detector,
)
from .detection.export import export_detector as export_detector
from .detection.gradcam import draw_cam as draw_cam
from .detection.neighbours import keep_neighbours as keep_neighbours
from .detection.scores.of_logits import energy as energy
from .detection.settings import ClassifierSettings as ClassifierSettings
from .evaluation.comparison import compare as compare
from .evaluation.evaluate import evaluate_detectors as evaluate_detectors
from .evaluation.posthoc import POST_HOC as POST_HOC
from .evaluation.report import (
    DIFFERENCES_NOTE as DIFFERENCES_NOTE,
    plain as plain,
    stems as stems,
    summary as summary,
    with_spread as with_spread,
)
from .evaluation.score_table import (
    TestSets as TestSets,
    read_scores as read_scores,
    results_of as results_of,
    score_columns as score_columns,
    score_images as score_images,
)
from .fitting.job import (
    Fitted as Fitted,
    fit_detector as fit_detector,
)
from .fitting.sources import FitSources as FitSources
from .generation.batches import make_batches as make_batches
from .generation.checkpoint import load_pipeline as load_pipeline
from .generation.drawing import draw as draw
from .generation.generate import (
    generate_outliers as generate_outliers,
    make_plan as make_plan,
)
from .generation.label_rules import RULES as RULES
from .generation.make import (
    OutlierMaker as OutlierMaker,
    Work as Work,
    image_form as image_form,
)
from .generation.ood_labels import (
    embedded_labels as embedded_labels,
    pipeline_encoder as pipeline_encoder,
    usable_labels as usable_labels,
)
from .generation.plan import (
    Plan as Plan,
    plan_outliers as plan_outliers,
)
from .generation.settings import (
    PRESETS as PRESETS,
    SCHEDULERS as SCHEDULERS,
    GenerationSettings as GenerationSettings,
    OutputSettings as OutputSettings,
)
from .generation.ways import WAYS as WAYS
from .hub.repositories import (
    push as push,
    write_blocks_repository as write_blocks_repository,
    write_detector_repository as write_detector_repository,
    write_outlier_repository as write_outlier_repository,
    write_pipeline_repository as write_pipeline_repository,
    write_space as write_space,
)
from .pipelines.core import (
    SONAMixin as SONAMixin,
    SONAPipelineOutput as SONAPipelineOutput,
)
from .pipelines.families.chroma import SONAChromaPipeline as SONAChromaPipeline
from .pipelines.families.flux import SONAFluxPipeline as SONAFluxPipeline
from .pipelines.families.flux_2 import SONAFlux2Pipeline as SONAFlux2Pipeline
from .pipelines.families.qwen_image import SONAQwenImagePipeline as SONAQwenImagePipeline
from .pipelines.families.stable_diffusion import SONAPipeline as SONAPipeline
from .pipelines.families.stable_diffusion_3 import SONASD3Pipeline as SONASD3Pipeline
from .pipelines.families.stable_diffusion_xl import SONAXLPipeline as SONAXLPipeline
from .pipelines.families.z_image import SONAZImagePipeline as SONAZImagePipeline
from .pipelines.guidance import (
    MASK_GRANULARITIES as MASK_GRANULARITIES,
    SONAGuidance as SONAGuidance,
    sona_guidance as sona_guidance,
)
from .pipelines.modular.blocks import SONABlocks as SONABlocks
from .pipelines.modular.guider import SONAGuider as SONAGuider
from .training.items import TrainingSets as TrainingSets
from .training.loop import Training as Training
from .training.methods import METHODS as METHODS
from .training.methods.base import Method as Method
from .training.settings import (
    RECIPES as RECIPES,
    Running as Running,
    TrainingSettings as TrainingSettings,
)
from .training.train import train_detector as train_detector

__version__: str
