"""The registered model: versions, promotion, model card, loading."""
