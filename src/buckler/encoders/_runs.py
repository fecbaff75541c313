"""What is done for each kind of method, or for one method by its path; see `evaluate.evaluate`, which calls these.

Each takes the setting and returns the trial with evidence, estimates and checks, or a skipped one with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from buckler.encoders._bagged import bagged
from buckler.encoders._certified import certified
from buckler.encoders._depleted import flooded, sponged
from buckler.encoders._evaded import evaded
from buckler.encoders._guarded import guarded
from buckler.encoders._guessed import guessed
from buckler.encoders._hardened import hardened
from buckler.encoders._implanted import implanted
from buckler.encoders._inferred import inferred
from buckler.encoders._inspected import inspected
from buckler.encoders._owned import owned
from buckler.encoders._paired import pair_poisoned
from buckler.encoders._poisoned import poisoning
from buckler.encoders._pretrained import pretraining
from buckler.encoders._promised import promised
from buckler.encoders._reconstructed import reconstructed
from buckler.encoders._repaired import repaired
from buckler.encoders._setting import Setting
from buckler.encoders._stolen import stolen
from buckler.encoders._traced import traced
from buckler.encoders._watched import watched
from buckler.trial import Trial

RUNS: Mapping[str, Callable[[Setting], Trial]] = {
    "pretrain": pretraining,
    "encoders/pair_poisoning": pair_poisoned,
    "encoders/sponge": sponged,
    "encoders/query_flood": flooded,
    "evade": evaded,
    "certify": certified,
    "encoders/adversarial_contrastive": hardened,
    "poison": poisoning,
    "bag": bagged,
    "extract": stolen,
    "guard": guarded,
    "watch": watched,
    "own": owned,
    "infer": inferred,
    "encoders/dp_rotation": promised,
    "encoders/data_tracing": traced,
    "encoders/density_inference": traced,
    "reconstruct": reconstructed,
    "guess": guessed,
    "implant": implanted,
    "inspect": inspected,
    "repair": repaired,
}
