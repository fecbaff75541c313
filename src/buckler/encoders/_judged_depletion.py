"""Findings on what queries can be made to cost, and on whom a flood of them locks out; the tenth problem's row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from buckler.encoders._problems import PROBLEMS, Row
from buckler.findings import Finding, NotMeasured, Rule, Severity, Verdicts, because, severity
from buckler.judging import named, resting
from buckler.report import figures
from buckler.stats import Estimate
from buckler.trial import Trial

CELL = PROBLEMS["depletion"][1]
FORCED, REFUSED = "encoders.work_forced", "encoders.honest_refused"
ASKED = ("rows", "train_rows", "encoder_steps", "ball")
COSTS = {
    "spent_factor": "work of a sponge where the encoder may leave early, times an honest query's",
    "pruned_factor": "work of a sponge where the encoder drops tokens, times an honest query's",
    "capped_factor": "the same under a cap",
    "spent": "work of an honest query, where the encoder without exits does 1",
    "noise_spent": "work of an honest query with noise of the size of the limit",
    "junk_spent": "work of random pixels",
    "sponge_spent": "work of sponges",
    "pruned": "work of an honest query, where the encoder that keeps all tokens does 1",
    "noise_pruned": "work of an honest query with noise of the size of the limit, with tokens dropped",
    "junk_pruned": "work of random pixels, with tokens dropped",
    "sponge_pruned": "work of sponges, with tokens dropped",
    "busy_factor": "work of a sponge where products by zero are skipped, times an honest query's",
    "busy": "share of products that are not by zero, honest queries",
    "noise_busy": "share of products that are not by zero, with noise",
    "junk_busy": "share of products that are not by zero, random pixels",
    "sponge_busy": "share of products that are not by zero, sponges",
    "sponge_refused": "sponges that are busier than 99 % of honest queries",
    "refused": "honest queries that a cut-off there refuses",
    "dense": "work of a sponge, times an honest query's, by the encoder as it is",
    "full_correct": "accuracy of a linear probe above the encoder as it is",
    "exit_correct": "the same, served so that it does less",
    "capped_correct": "the same with a cap",
    "cap_cost": "rows answered rightly more with the cap than without",
}
SERVED = {
    "spent": ("with early exits", "a cap on the exits"),
    "pruned": ("with token pruning", "a cap on the tokens"),
    "busy": ("on hardware that skips zeros", ""),
}
"""How an encoder is served that does less for some inputs, and what defends it."""
FLOODS = {
    "refused": "honest queries refused because of a flood of sponges",
    "quiet": "honest queries answered without a flood",
    "flooded": "the same in a flood of ordinary queries",
    "sponged": "the same in a flood of sponges",
    "capped": "the same with a cap on what a query may cost",
    "limited": "the same with a limit for each client",
    "many_names": "the same with limits, against a name for each query of the flood",
    "limited_quiet": "the same with limits, without a flood",
}


def of_depletion(trials: Sequence[Trial], table: Mapping[str, Rule], command: str) -> tuple[Verdicts, tuple[Row, ...]]:
    """What the costliest sponges cost, and what the worst flood does."""
    missing = tuple(NotMeasured(named(t), t.reason, CELL) for t in trials if t.status != "ok")
    good = [t for t in trials if t.status == "ok"]
    sponges = [t for t in good if "dense" in t.estimates]
    floods = [t for t in good if "sponged" in t.estimates]
    findings, rows = list[Finding](), tuple[Row, ...]()
    if sponges:
        worst = max(sponges, key=lambda t: _effect(t)[1].low)
        findings.append(resting(_of_sponges(worst, table), sponges, worst, command, ASKED))
        rows = (_row(worst),)
    if floods:
        worst = max(floods, key=lambda t: t.estimates["refused"].low)
        findings.append(resting(_of_floods(worst, table), floods, worst, command, ASKED))
    return Verdicts(tuple(findings), missing), rows


def _effect(trial: Trial) -> tuple[str, Estimate]:
    """How the encoder is served where sponges cost most, and the factor there."""
    known = trial.estimates
    ways = [way for way in SERVED if f"{way}_factor" in known]
    way = max(ways, key=lambda way: known[f"{way}_factor"].low)
    return way, known[f"{way}_factor"]


def _of_sponges(trial: Trial, table: Mapping[str, Rule]) -> Finding:
    known = trial.estimates
    way, factor = _effect(trial)
    level = severity(FORCED, factor, table)
    state = "clear" if level == Severity.info else "found" if factor.low > 1 else "not measured"
    served = SERVED[way][0]
    noise, junk = known[f"noise_{way}"].value / known[way].value, known[f"junk_{way}"].value / known[way].value
    dense = known["dense"]
    same = "As it is, the encoder does the same work for every input: there is nothing to deplete per query."
    if not dense.low == dense.high == 1:
        same = f"As it is, the encoder does {dense.value:.3g} times the work of an honest query for a sponge."
    claim = (
        f"{same} Were it served {served}, a sponge within "
        f"{trial.params['ball']} takes {factor.value:.2f} times the work of an honest query; noise of the same size "
        f"{noise:.2f} times, random pixels {junk:.2f} times."
    )
    if "capped_factor" in known:
        claim += (
            f" A cap leaves {known['capped_factor'].value:.2f} times, and changes a linear probe's accuracy by "
            f"{100 * known['cap_cost'].value:+.1f} points."
        )
    shown = {
        "honest queries": known[way],
        "with noise": known[f"noise_{way}"],
        "random pixels": known[f"junk_{way}"],
        "sponges": known[f"sponge_{way}"],
    }
    return Finding(
        id="encoders/depletion",
        title="How much work a query can be made to take",
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if state == "not measured" else because(FORCED, factor, table),
        claim=claim + (" This decides nothing: there are too few rows." if state == "not measured" else ""),
        cell=CELL,
        estimates={says: known[name] for name, says in COSTS.items() if name in known},
        figures=(figures.bars(shown, axis=f"work {served}, where the encoder as it is does 1", name="sponges"),),
        remedy="Cap what a query may cost at what an honest one costs in the mean, or pay for the worst case always.",
        remedied={COSTS[name]: known[name] for name in ("capped_factor", "cap_cost") if name in known},
    )


def _of_floods(trial: Trial, table: Mapping[str, Rule]) -> Finding:
    known = trial.estimates
    refused = known["refused"]
    level = severity(REFUSED, refused, table)
    state = "clear" if level == Severity.info else "found" if refused.low > 0 else "not measured"
    share = {name: f"{known[name].value:.1%}" for name in FLOODS}
    return Finding(
        id="encoders/depletion/flood",
        title="Whom a flood of queries locks out",
        state=state,
        severity=level if state == "found" else Severity.info,
        because="" if state == "not measured" else because(REFUSED, refused, table),
        claim=f"In a simulated service that answers {share['quiet']} of honest queries in peace, a flood of "
        f"{trial.params['flood']:g} times as many leaves {share['flooded']}, and a flood of sponges "
        f"{share['sponged']}. A cap on the work of a query brings it to "
        f"{share['capped']}, a limit for each client to {share['limited']} ({share['limited_quiet']} in peace), and "
        f"{share['many_names']} where every query of the flood has a name of its own."
        + (" This decides nothing: there are too few queries." if state == "not measured" else ""),
        cell=CELL,
        estimates={says: known[name] for name, says in FLOODS.items()},
        figures=(
            figures.bars(
                {
                    "in peace": known["quiet"],
                    "in a flood": known["flooded"],
                    "of sponges": known["sponged"],
                    "with a cap": known["capped"],
                    "with limits": known["limited"],
                    "with limits, many names": known["many_names"],
                },
                axis="honest queries answered",
                name="floods",
            ),
        ),
        remedy="Cap what a query may cost, limit how many each client may send, and make names cost something.",
        remedied={FLOODS[name]: known[name] for name in ("capped", "limited", "limited_quiet")},
    )


def _row(trial: Trial) -> Row:
    known = trial.estimates
    way, factor = _effect(trial)
    served, defence = SERVED[way]
    capped = way != "busy"
    return Row(
        problem="depletion",
        attack=named(trial),
        says=f"work of an honest query, {served}, times (the encoder as it is: {known['dense'].value:.3g})",
        effect=factor,
        before=known.get("full_correct"),
        after=known.get("exit_correct"),
        defence=defence,
        left=known["capped_factor"] if capped else None,
        costs=known["cap_cost"] if capped else None,
    )
