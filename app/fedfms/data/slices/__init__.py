"""From the cases of a dataset to the model inputs of each split."""
