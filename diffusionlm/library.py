"""Names of the library's components."""

# The library's members of each family that are not defined beside the family's base class, imported when first used.
LIBRARY: dict[str, dict[str, str]] = {
    "corpus": {"restaurants": "diffusionlm.restaurants.corpus:Restaurants"},
    "annotator": {"grammar": "diffusionlm.restaurants.annotator:Grammar"},
    "noise schedule": {
        "cosine": "diffusionlm.recipe.schedules:Cosine",
        "linear": "diffusionlm.recipe.schedules:Linear",
        "gumbel": "diffusionlm.recipe.gumbel:Gumbel",
        "geometric": "diffusionlm.recipe.schedules:Geometric",
    },
    "process": {"variance-exploding": "diffusionlm.recipe.processes:VarianceExploding"},
    "sampler": {
        "ddim": "diffusionlm.recipe.samplers:DDIM",
        "renoise": "diffusionlm.recipe.samplers:Renoise",
        "dpm++2m": "diffusionlm.recipe.samplers:DPMSolver",
        "heun": "diffusionlm.recipe.heun:Heun",
        "annealed-langevin": "diffusionlm.recipe.langevin:AnnealedLangevin",
        "predictor-corrector": "diffusionlm.recipe.langevin:PredictorCorrector",
        "flow": "diffusionlm.recipe.flow:Flow",
        "ancestral": "diffusionlm.pipelines.masked:Ancestral",
        "mask-predict": "diffusionlm.pipelines.masked:MaskPredict",
        "maskgit": "diffusionlm.pipelines.masked:MaskGIT",
    },
    "ranking": {"likelihood": "diffusionlm.evaluation.ranking:LikelihoodRanking"},
    "guidance": {"gradient": "diffusionlm.pipelines.gradient:Gradient"},
    "adapter": {"lora": "diffusionlm.models.lora:Lora", "control-branch": "diffusionlm.models.control_branch:ControlBranch"},
    "backbone": {
        "bert": "diffusionlm.models.backbones:Bert",
        "transformer": "diffusionlm.models.backbones:Transformer",
        "leave-one-out": "diffusionlm.models.leave_one_out:LeaveOneOut",
    },
    "condition": {
        "source": "diffusionlm.models.source:Source",
        "partial-noising": "diffusionlm.models.source:PartialNoising",
        "label": "diffusionlm.models.attributes:Label",
        "number": "diffusionlm.models.attributes:Number",
        "tags": "diffusionlm.models.tags:Tags",
        "several": "diffusionlm.models.attributes:Several",
    },
    "objective": {
        "cross-entropy": "diffusionlm.recipe.cross_entropy:CrossEntropy",
        "regression": "diffusionlm.recipe.regression:Regression",
        "sliced-score-matching": "diffusionlm.recipe.score_matching:SlicedScoreMatching",
        "masked": "diffusionlm.models.masked:MaskedWords",
        "causal": "diffusionlm.models.causal:NextToken",
        "seq2seq": "diffusionlm.models.seq2seq:SourceToText",
        "classification": "diffusionlm.models.classifier.objective:Classification",
    },
    "model": {
        "diffusion": "diffusionlm.models.diffusion:ModelConfig",
        "masked": "diffusionlm.models.masked:MaskedConfig",
        "causal": "diffusionlm.models.causal:CausalConfig",
        "seq2seq": "diffusionlm.models.seq2seq:Seq2SeqConfig",
        "classifier": "diffusionlm.models.classifier.model:ClassifierConfig",
    },
}
