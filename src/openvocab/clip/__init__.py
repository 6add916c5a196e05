"""CLIP itself: model, tokenizer, preprocessing, objectives, vocabularies, weights."""
