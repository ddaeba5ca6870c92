"""The only classes that a job may name in its two FLARE files.

A kit loads only the classes in the ``class_allow_list`` of its ``local/resources.json``: the site's executor and gate,
or the server's part. FLARE's simulator has one file for all, with both; a test compares it with these.
"""

from __future__ import annotations

CONTROLLER = "fedfms.flare.controller.FedfmsController"
EXECUTOR = "fedfms.flare.executor.FedfmsExecutor"
EGRESS_FILTER = "fedfms.flare.gates.EgressFilter"

SITE_CLASSES = (EXECUTOR, EGRESS_FILTER)
SERVER_CLASSES = (
    "fedfms.flare.aggregator.FedfmsAggregator",
    CONTROLLER,
    "fedfms.flare.generator.ExchangeGenerator",
    "fedfms.flare.ledger.Ledger",
    "fedfms.flare.persistor.FedfmsPersistor",
    "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
)
