from .common.assets import (
    TINY_DETECTOR as TINY_DETECTOR,
)
from .common.assets import (
    TINY_MODEL as TINY_MODEL,
)
from .common.figures import save_figure as save_figure
from .common.files import (
    only_run as only_run,
)
from .common.files import (
    settle_settings as settle_settings,
)
from .common.files import (
    write_text as write_text,
)
from .common.progress import Track as Track
from .data import sample as sample
from .data.class_names import (
    Names as Names,
)
from .data.class_names import (
    imagenet_labels as imagenet_labels,
)
from .data.class_names import (
    spoken as spoken,
)
from .data.images import (
    ImageSet as ImageSet,
)
from .data.images import (
    hold_out as hold_out,
)
from .data.images import (
    is_grey as is_grey,
)
from .data.images import (
    open_images as open_images,
)
from .data.imaging import (
    decoded as decoded,
)
from .data.imaging import (
    fit as fit,
)
from .data.outlier_set import (
    OutlierPairs as OutlierPairs,
)
from .data.outlier_set import (
    OutlierWriter as OutlierWriter,
)
from .data.outlier_set import (
    open_outlier_set as open_outlier_set,
)
from .data.outlier_set import (
    read_rows as read_rows,
)
from .detection.detector import (
    Detection as Detection,
)
from .detection.detector import (
    Detector as Detector,
)
from .detection.detector import (
    load_detector as load_detector,
)
from .detection.gradcam import draw_cam as draw_cam
from .detection.scores import energy as energy
from .evaluation.evaluate import evaluate_detectors as evaluate_detectors
from .evaluation.posthoc import POST_HOC as POST_HOC
from .evaluation.report import (
    plain as plain,
)
from .evaluation.report import (
    with_spread as with_spread,
)
from .evaluation.score_table import (
    TestSets as TestSets,
)
from .evaluation.score_table import (
    read_scores as read_scores,
)
from .evaluation.score_table import (
    results_of as results_of,
)
from .evaluation.score_table import (
    score_images as score_images,
)
from .generation.checkpoint import (
    SCHEDULERS as SCHEDULERS,
)
from .generation.checkpoint import (
    load_pipeline as load_pipeline,
)
from .generation.generate import (
    OutputSettings as OutputSettings,
)
from .generation.generate import (
    generate_outliers as generate_outliers,
)
from .generation.generate import (
    make_plan as make_plan,
)
from .generation.generate import (
    through_stages as through_stages,
)
from .generation.make import (
    OutlierMaker as OutlierMaker,
)
from .generation.make import (
    Work as Work,
)
from .generation.make import (
    image_form as image_form,
)
from .generation.ood_labels import (
    RULES as RULES,
)
from .generation.ood_labels import (
    pipeline_encoder as pipeline_encoder,
)
from .generation.ood_labels import (
    usable_labels as usable_labels,
)
from .generation.plan import (
    GenerationSettings as GenerationSettings,
)
from .generation.plan import (
    Plan as Plan,
)
from .generation.plan import (
    plan_outliers as plan_outliers,
)
from .hub.repositories import (
    push as push,
)
from .hub.repositories import (
    write_detector_repository as write_detector_repository,
)
from .hub.repositories import (
    write_outlier_repository as write_outlier_repository,
)
from .hub.repositories import (
    write_pipeline_repository as write_pipeline_repository,
)
from .hub.repositories import (
    write_space as write_space,
)
from .pipeline import (
    MASK_GRANULARITIES as MASK_GRANULARITIES,
)
from .pipeline import (
    SONAGuidance as SONAGuidance,
)
from .pipeline import (
    SONAPipeline as SONAPipeline,
)
from .pipeline import (
    SONAPipelineOutput as SONAPipelineOutput,
)
from .pipeline import (
    sona_guidance as sona_guidance,
)
from .training.items import TrainingSets as TrainingSets
from .training.loop import Training as Training
from .training.settings import (
    RECIPES as RECIPES,
)
from .training.settings import (
    Running as Running,
)
from .training.settings import (
    TrainingSettings as TrainingSettings,
)
from .training.train import train_detector as train_detector

__version__: str
