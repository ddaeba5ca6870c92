"""From the updates of a round to one step of the model: weights, rules, and the check of norms; no FLARE."""
