"""Building blocks of networks: they know nothing of CLIP, of data or of training."""
