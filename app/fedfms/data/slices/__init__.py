"""From the cases of a data set to the model inputs of each split."""
