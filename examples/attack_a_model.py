"""Attack the demo model at three radii and print what can be believed of the answers."""

from functools import partial

from buckler.evasion.evaluate import evaluate
from buckler.evasion.pgd import pgd
from buckler.subject import demo
from buckler.threat import Ball

subject = demo("digits")
for radius in (0.02, 0.05, 0.1):
    trial = evaluate(partial(pgd, restarts=2), subject, ball=Ball("linf", radius), rows=100)
    print(f"linf {radius}: robust accuracy {trial.estimates['robust_accuracy']} ({trial.status}) {trial.reason}")
