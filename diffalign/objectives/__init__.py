"""How to align: one file a paper. An objective is a final frozen dataclass with a call, under the laws of the tests.

An objective is often a sentence in three words, implicit reward, link and weight, which `Pairwise` combines freely.
"""

from diffalign.objectives.alpha_dpo import AlphaDPO
from diffalign.objectives.anchored import Anchored
from diffalign.objectives.awm import AWM
from diffalign.objectives.bco import BCO
from diffalign.objectives.conventions import convert_beta
from diffalign.objectives.cpo import CPO
from diffalign.objectives.crd import CRD
from diffalign.objectives.dgpo import DGPO
from diffalign.objectives.dmpo import DMPO
from diffalign.objectives.dpo import DPO
from diffalign.objectives.dro import DRO
from diffalign.objectives.dspo import DSPO
from diffalign.objectives.hinge import Hinge
from diffalign.objectives.ipo import IPO
from diffalign.objectives.kto import KTO
from diffalign.objectives.links import (
    AlphaDivergence,
    HingeLoss,
    Linear,
    Logistic,
    NoisyLabel,
    ReverseKL,
    ScaledLogit,
    Squared,
    TargetMargin,
)
from diffalign.objectives.listnet import ListNet
from diffalign.objectives.madpo import MADPO
from diffalign.objectives.mapo import MaPO
from diffalign.objectives.mixed import Mixed
from diffalign.objectives.nft import NFT
from diffalign.objectives.pairwise import Pairwise
from diffalign.objectives.plackett_luce import PlackettLuce
from diffalign.objectives.rankdpo import RankDPO
from diffalign.objectives.ranknet import RankNet
from diffalign.objectives.robust_dpo import RobustDPO
from diffalign.objectives.sdpo import Safeguarded
from diffalign.objectives.sft import SFT
from diffalign.objectives.simpo import SimPO
from diffalign.objectives.smpo import SmPO
from diffalign.objectives.terms import (
    ElboRatio,
    KahnemanTversky,
    Likelihood,
    LossAverse,
    MarginAdaptive,
    RiskSeeking,
    SquashedLikelihood,
    UniformWeight,
)

__all__ = [
    "AWM",
    "BCO",
    "CPO",
    "CRD",
    "DGPO",
    "DMPO",
    "DPO",
    "DRO",
    "DSPO",
    "IPO",
    "KTO",
    "MADPO",
    "NFT",
    "SFT",
    "AlphaDPO",
    "AlphaDivergence",
    "Anchored",
    "ElboRatio",
    "Hinge",
    "HingeLoss",
    "KahnemanTversky",
    "Likelihood",
    "Linear",
    "ListNet",
    "Logistic",
    "LossAverse",
    "MaPO",
    "MarginAdaptive",
    "Mixed",
    "NoisyLabel",
    "Pairwise",
    "PlackettLuce",
    "RankDPO",
    "RankNet",
    "ReverseKL",
    "RiskSeeking",
    "RobustDPO",
    "Safeguarded",
    "ScaledLogit",
    "SimPO",
    "SmPO",
    "Squared",
    "SquashedLikelihood",
    "TargetMargin",
    "UniformWeight",
    "convert_beta",
]
