"""The model: backbones, Medical SAM Adapter, segmenter, exchange scope, checkpoints."""
