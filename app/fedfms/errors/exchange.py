"""The exchange between server and sites: X."""

from __future__ import annotations

from fedfms.errors.problem import declare

# --- X: the exchange ------------------------------------------------------------------------------------
SCHEMA_MISMATCH = declare(
    "FMS-X001",
    "a message does not match the exchange schema",
    "Server and sites must run the same job with the same package version.",
)
NOT_FINITE = declare(
    "FMS-X002",
    "a message contains values that are not finite",
    "Lower the learning rate or train in fp32; nothing was sent.",
)
NORM_EXCEEDED = declare(
    "FMS-X003",
    "an update is larger than the limit allows",
    "Lower the learning rate or the local work, or agree on another limit.",
)
BACKBONE_DIFFERS = declare(
    "FMS-X004",
    "server and site have different frozen backbones",
    "Install the same backbone file on both sides.",
)
JOB_DIFFERS = declare(
    "FMS-X005",
    "server and site have different job configurations",
    "Submit the job again; do not edit a deployed job.",
)
STALE_ROUND = declare(
    "FMS-X006", "a message belongs to another round", "Nothing to do: the next round is not affected."
)
DUPLICATE_UPDATE = declare(
    "FMS-X007", "a site sent a second update for one round", "Nothing to do: the first one counts."
)
INITIAL_STATE = declare(
    "FMS-X008",
    "the state sent before the first round is not the one this site derives from backbone and seed",
    "Ask the study lead which package version and backbone the server runs.",
)
GATE_CLOSED = declare(
    "FMS-X009",
    "the egress gate refused a reply it could not check",
    "See the site's local log for the reason; nothing was sent.",
)
NOT_READY = declare(
    "FMS-X010",
    "too few sites are ready",
    "Correct what the sites report; the problems of each are listed above this message.",
)
NO_UPDATE_ACCEPTED = declare(
    "FMS-X011",
    "no site's update was accepted in a round",
    "Look at the reasons in the ledger; the last good model is kept.",
)
SCOPE_REFUSED = declare(
    "FMS-X012",
    "the site's policy does not allow the job's exchange scope",
    "Ask the site to allow the scope, or choose a smaller one in the job.",
)
AGGREGATION_OVERFLOW = declare(
    "FMS-X013",
    "an update is too large for the aggregator's fixed-point range",
    "Check the number of cases and the update's norm that the site reports.",
)

QUORUM_LOST = declare(
    "FMS-X014",
    "fewer sites than min_clients can still give an accepted update in a round",
    "Look at the reasons in the ledger; the last good model is kept.",
)
STATE_IMPLAUSIBLE = declare(
    "FMS-X015",
    "the state that the server sent looks untrained or tampered with",
    "Nothing was computed with it; keep the run folder and ask the study lead what the server did.",
)
UPDATE_EXCLUDED = declare(
    "FMS-X016",
    "an update is much larger than those of the other sites",
    "Ask the site what its training did in this round; the update was left out of the model.",
)
