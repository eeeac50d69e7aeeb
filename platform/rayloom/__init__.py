"""Rayloom: fine-tune, measure and serve text-generation models on Ray."""
