"""The classes that a job may name in its two FLARE files, and nothing else.

Sites load only classes of the ``class_allow_list`` in their ``local/resources.json``. That list is this one; a test
compares it with the simulator's file and with the jobs.
"""

from __future__ import annotations

CONTROLLER = "fedfms.flare.controller.FedfmsController"
EXECUTOR = "fedfms.flare.executor.FedfmsExecutor"
EGRESS_FILTER = "fedfms.flare.gates.EgressFilter"

ALLOWED_CLASSES = (
    "fedfms.flare.aggregator.FedfmsAggregator",
    CONTROLLER,
    EXECUTOR,
    EGRESS_FILTER,
    "fedfms.flare.generator.ExchangeGenerator",
    "fedfms.flare.ledger.Ledger",
    "fedfms.flare.persistor.FedfmsPersistor",
    "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
)
