"""Generated scenes with exact ground truth."""
